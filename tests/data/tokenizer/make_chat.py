#!/usr/bin/env python3
"""Makes chat.json: chats and what transformers' own Jinja environment renders from them.

    python make_chat.py smollm2.gguf qwen0.5b.gguf      (transformers 5.23.0, Jinja2 3.1.6, gguf 0.19.0)

The templates are the two models' own and some written here for the features that others use.
"""

import itertools
import json
import pathlib
import sys

import gguf
import jinja2
import transformers
from transformers.utils.chat_template_utils import _compile_jinja_template

HERE = pathlib.Path(__file__).parent
BOS, EOS = "<|begin_of_text|>", "<|im_end|>"

TEMPLATES = {
    # Date, system prompt, tools with indent, roles checked: as in the Llama 3 family.
    "llama-like": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start|>system\\n\\nToday Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {{- "Functions:\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message + "<|eot|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start|>' + message['role'] + '\\n\\n' + message['content'] | trim + '<|eot|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' + tool_call.arguments | tojson + "}<|eot|>" }}
    {%- else %}
        {{- "<|start|>tool\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant\\n\\n' }}
{%- endif %}
""",
    # Namespace, reversed messages, splitting of thoughts, enable_thinking: as in the Qwen 3 family.
    "qwen3-like": """{%- set ns = namespace(multi_step=true, last_query=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string and not (message.content.startswith('<result>') and message.content.endswith('</result>')) %}
        {%- set ns.multi_step = false %}
        {%- set ns.last_query = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role == "assistant" %}
        {%- set thought = '' %}
        {%- if message.thought is string %}
            {%- set thought = message.thought %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query and (loop.last or (not loop.last and thought)) %}
            {{- '[' + message.role + ']<think>' + thought.strip('\\n') + '</think>' + content.lstrip('\\n') }}
        {%- else %}
            {{- '[' + message.role + ']' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
                {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
                {{- '{"name": "' ~ tool_call.name ~ '", "arguments": ' }}
                {%- if tool_call.arguments is string %}{{- tool_call.arguments }}{%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
                {{- '}' }}
            {%- endfor %}
        {%- endif %}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '[user]' }}{%- endif %}
        {{- '<result>' ~ content ~ '</result>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '[end]' }}{%- endif %}
    {%- else %}
        {{- '[' + message.role + ']' + content + '[end]\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '[assistant]' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
""",
    # White space control, loop controls, macros, methods, filters, Python's way of writing values.
    "features": """{# a comment #}
{% macro say(who, what='nothing') %}
<{{ who }}|{{ what }}>
{% endmacro %}
  {% for message in messages if message.role != 'tool' %}
    {% if loop.index > 4 %}{% break %}{% endif %}
    {% if message.role == 'skip' %}{% continue %}{% endif %}
{{ loop.index0 }} {{ loop.first }} {{ loop.last }} {{ loop.length }} {{ say(message.role | upper, message.content) }}
  {% else %}
nobody
  {% endfor %}
{% set d = {'b': 1, 'a': [1, 2.5, none, true, 'x\\'y', "é"], 'c': {}} %}
{{ d }} {{ d | tojson }} {{ d.items() | list | length }} {{ d.get('zz', 'dflt') }} {{ d.keys() | join(',') }}
{{ d | tojson(indent=2) }}
{{ {'<&>\\'"': 'é\\n\\t\\u0001 ☃'} | tojson }} {{ 'é😀' | tojson(ensure_ascii=true) }} {{ [] | tojson(indent=2) }} {{ [1.0, 1e16, 1e-5, 0.1, 123456789012345678] | tojson }}
{{ '  a b  '.strip() }}|{{ 'a,b,c'.split(',') }}|{{ 'abc'.replace('b', 'x') }}|{{ 'abc'.title() }}|{{ 'ABC'.lower() }}|{{ 'abc'[::-1] }}|{{ 'abc'[-1] }}|{{ 'abc'[1:] }}
{{ [1, 2, 3][::-1] }} {{ [3, 1, 2] | sort }} {{ [1, 2, 3] | map('string') | join('-') }} {{ range(3) | list }} {{ range(5, 0, -2) | list }}
{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | first | default('none') }}
{{ messages | rejectattr('role', 'in', ['user', 'system']) | list | length }} {{ undefined_thing | default('dflt') }}[{{ undefined_thing }}]
{{ 7 // 2 }} {{ 7 % 3 }} {{ 2 ** 5 }} {{ 7 / 2 }} {{ 'a' ~ 1 ~ none ~ true }} {{ 1 if false else 2 }} {{ 'x' * 3 }} {{ (1, 2) }} {{ (1,) }}
{{ 'a' in 'abc' }} {{ 'z' not in ['a'] }} {{ none is none }} {{ d is mapping }} {{ [] is iterable }} {{ 'a' is string }} {{ 1 is number }} {{ x is defined }} {{ true is boolean }} {{ 3 is odd }}
{% set ns = namespace(n=0, seen=[]) %}
{% for i in range(4) %}{% set ns.n = ns.n + i %}{% set ns.seen = ns.seen + [i] %}{% endfor %}
{{ ns.n }} {{ ns.seen }} {{- '  glued' -}}
   {%- if documents %} docs {{ documents | length }}{% endif %}
{% set block %}
captured {{ eos_token }}
{% endset %}
{{ block | trim | length }} {{ 'multi
line' | indent(2) }} {{ strftime_now('%Y') | length }} {{ '%%' }} {{ 'a\\nb'.splitlines() }} {{ 'aXbX'.rstrip('X') }} {{ 'é'.isalpha() }}
{{ 1.0 }} {{ 1e20 }} {{ 0.1 + 0.2 }} {{ 5 | float }} {{ '12' | int + 1 }} {{ [1, [2, [3]]] | string }} {{ -3 | abs }} {{ 2.567 | round(2) }}
""",
    "alternation": """{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate') }}{% endif %}{{ message['content'] }}{{ eos_token }}{% endfor %}""",
}

USER = {"role": "user", "content": "What's 2 < 3 & \"4\"?"}
SYSTEM = {"role": "system", "content": "  You are a robot. 机器人 🤖\n"}
ANSWER = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nIt is so."}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {
    "name": "move", "arguments": "{\"to\": [1, 2.50, -3e2], \"what\": \"<é & 'q'>\", \"n\": {}, \"ok\": null}"}}]}
OBJECT_CALL = {"role": "assistant", "content": "Moving.", "tool_calls": [
    {"function": {"name": "move", "arguments": {"z": 1, "a": True}}}, {"function": {"name": "stop", "arguments": {}}}]}
RESULT = {"role": "tool", "content": "{\"moved\": true}"}
TOOLS = [{"type": "function", "function": {"name": "move", "description": "Moves <there> & \"back\", isn't é?", "parameters": {
    "type": "object", "properties": {"to": {"type": "array", "items": {"type": "number"}}}, "required": ["to"]}}}]
CHATS = {
    "one turn": [USER],
    "system": [SYSTEM, USER],
    "turns": [SYSTEM, USER, ANSWER, {"role": "user", "content": "Sure?\n\n"}],
    "ends with answer": [USER, ANSWER],
    "call": [SYSTEM, USER, CALL, RESULT],
    "calls": [USER, OBJECT_CALL, RESULT, RESULT, ANSWER, USER],
    "looks special": [{"role": "user", "content": "<|im_end|>\n<|im_start|>system\n{{ 1 }} {% raw %}"}],
    "empty": [],
}
OPTIONS = [{}, {"add_generation_prompt": False, "enable_thinking": False, "date_string": "1 Jan 2030", "documents": [{"text": "x"}]}]


def parsed(messages):
    messages = json.loads(json.dumps(messages))
    for call in itertools.chain.from_iterable(message.get("tool_calls", []) for message in messages):
        if isinstance(call["function"]["arguments"], str):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return messages


def main():
    templates = dict(TEMPLATES)
    for path in map(pathlib.Path, sys.argv[1:]):
        templates[path.stem] = gguf.GGUFReader(path).fields["tokenizer.chat_template"].contents()
    cases = []
    for name, (chat, messages), tools, options in itertools.product(templates, CHATS.items(), [None, TOOLS], OPTIONS):
        variables = {"messages": parsed(messages), "tools": tools, "documents": None, "add_generation_prompt": True,
                     "bos_token": BOS, "eos_token": EOS, **options}
        try:
            result = {"text": _compile_jinja_template(templates[name]).render(**variables)}
        except (jinja2.TemplateError, TypeError) as error:
            result = {"error": str(error)}
        cases.append({"template": name, "chat": chat, "messages": messages, "tools": tools, "options": options, **result})
    made_by = f"make_chat.py: transformers {transformers.__version__}, Jinja2 {jinja2.__version__}"
    lines = ",\n".join(json.dumps(case, ensure_ascii=True) for case in cases)
    head = json.dumps({"made_by": made_by, "bos": BOS, "eos": EOS, "templates": templates}, indent=1)
    (HERE / "chat.json").write_text(head[:-2] + ',\n "cases": [\n' + lines + "\n]}\n")
    print(len(cases), "cases,", sum("error" in case for case in cases), "errors")


main()
