"""JSON schemas as robots, devices and agents use them: what grammar.py generates under."""


def obj(properties, required=None, **more):
    """An object of these properties, all required unless said otherwise, and no others."""
    required = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False, **more}


def arr(items, least, most):
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def text(most=24, **more):
    return {"type": "string", "maxLength": most, **more}


def pattern(regex):
    return {"type": "string", "pattern": regex}


def integer(least=0, most=100):
    return {"type": "integer", "minimum": least, "maximum": most}


def number(least=0, most=10):
    return {"type": "number", "minimum": least, "maximum": most}


def one(*values):
    return {"enum": list(values)}


BOOL = {"type": "boolean"}
NAME = pattern("^[A-Z][a-z]{2,8}$")
POINT = obj({"x": integer(-50, 50), "y": integer(-50, 50)})
REF = {"$ref": "#/$defs/item"}

SCHEMAS = {
    "a greeting": text(40),
    "a yes or no": BOOL,
    "a speed in percent": integer(),
    "a temperature": number(-40, 60),
    "nothing, or a name": {"anyOf": [{"type": "null"}, NAME]},
    "a colour": one("red", "green", "blue", "black", "white"),
    "an answer code": one(1, 2, 3, "unknown", None, True),
    "three lucky numbers": arr(integer(1, 49), 3, 3),
    "up to four switches": arr(BOOL, 0, 4),
    "a list of fruits": arr(one("apple", "pear", "plum", "fig"), 1, 4),
    "a point on the map": POINT,
    "a path of points": arr(POINT, 2, 3),
    "a person": obj({"name": NAME, "age": integer(0, 120)}),
    "a person with a nickname, if any": obj({"name": NAME, "nickname": text(12)}, ["name"]),
    "a command to a robot": obj({"action": one("goto", "pick", "place", "wait"), "target": text(16)}),
    "a rotation": obj({"direction": one("left", "right"), "degrees": integer(1, 360)}),
    "a gripper's command": obj({"open": BOOL, "force": number(0, 5)}),
    "a reading of a sensor": obj({"sensor": one("lidar", "imu", "gps"), "value": number(), "ok": BOOL}),
    "a battery's state": obj({"percent": integer(), "charging": BOOL, "volts": number(10, 15)}),
    "a plan of steps": arr(obj({"do": one("go", "turn", "stop"), "n": integer(1, 9)}), 1, 3),
    "a date": pattern("^20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9])$"),
    "a time of day": pattern("^([01][0-9]|2[0-3]):[0-5][0-9]$"),
    "a version": pattern("^[0-9]{1,2}\\.[0-9]{1,2}\\.[0-9]{1,2}$"),
    "an address of IPv4": {"type": "string", "format": "ipv4"},
    "an identifier": {"type": "string", "format": "uuid"},
    "a day": {"type": "string", "format": "date"},
    "a colour in hexadecimal": pattern("^#[0-9a-f]{6}$"),
    "a network port": obj({"protocol": one("tcp", "udp"), "port": integer(1, 65535)}),
    "a book": obj({"title": text(30), "year": integer(1900, 2030), "pages": integer(1, 2000)}),
    "an order": obj({"id": integer(1, 9999), "items": arr(obj({"sku": pattern("^[A-Z]{2}[0-9]{3}$"), "n": integer(1, 9)}), 1, 2)}),
    "a recipe": obj({"name": text(20), "minutes": integer(1, 240), "ingredients": arr(text(12), 1, 3)}),
    "a review": obj({"stars": integer(1, 5), "text": text(40)}),
    "the weather": obj({"sky": one("clear", "cloudy", "rain"), "celsius": integer(-30, 45), "wind": number(0, 40)}),
    "a circle or a square": {"anyOf": [obj({"kind": {"const": "circle"}, "r": integer(1, 9)}), obj({"kind": {"const": "square"}, "a": integer(1, 9)})]},
    "a command with its own arguments": {"oneOf": [obj({"cmd": {"const": "say"}, "text": text(20)}), obj({"cmd": {"const": "move"}, "to": POINT})]},
    "a tree of two levels": obj({"v": integer(), "children": arr(obj({"v": integer()}), 0, 2)}),
    "a shared definition": obj({"left": REF, "right": REF}, **{"$defs": {"item": obj({"w": integer(0, 9)})}}),
    "a list that may be nested": {"$defs": {"item": {"anyOf": [integer(0, 9), arr(REF, 0, 2)]}}, "type": "array", "items": REF, "maxItems": 3},
    "an inspection": {"allOf": [{"type": "object", "properties": {"ok": BOOL}, "required": ["ok"]}, obj({"ok": BOOL, "note": text(20)})]},
    "a pair of a name and a number": {"type": "array", "prefixItems": [NAME, integer()], "items": False, "minItems": 2},
    "settings by name": obj({"gain": integer(0, 9), "bias": integer(-9, 9)}, ["gain"]),
    "a status of a job": obj({"state": one("queued", "running", "done", "failed"), "progress": number(0, 1), "error": {"anyOf": [{"type": "null"}, text(20)]}}),
    "a bounding box": obj({"label": one("cup", "person", "door"), "box": arr(integer(0, 640), 4, 4), "score": number(0, 1)}),
    "two detections": arr(obj({"label": one("cup", "dog"), "p": number(0, 1)}), 2, 2),
    "a joint's limits": obj({"joint": pattern("^j[1-7]$"), "min": integer(-180, 0), "max": integer(0, 180)}),
    "a pose": obj({"position": arr(number(-5, 5), 3, 3), "yaw": number(-3, 3)}),
    "a message with words of any script": obj({"lang": one("en", "de", "zh"), "text": text(16)}),
    "a number above zero": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "an even number": {"type": "integer", "multipleOf": 2, "minimum": 0, "maximum": 100},
    "a classification": obj({"class": one("spam", "ham"), "why": text(30)}),
    "a translation": obj({"source": text(16), "target": text(16)}),
    "a call of a tool": obj({"name": one("search", "open"), "arguments": obj({"query": text(20)})}),
    "a schedule": obj({"days": arr(one("mon", "tue", "wed"), 1, 3), "at": pattern("^[0-2][0-9]:00$")}),
    "an alarm": obj({"level": one("info", "warn", "stop"), "zone": integer(1, 8), "since": pattern("^T-[0-9]{1,3}s$")}),
    "a maintenance record": obj({"part": text(16), "hours": integer(0, 20000), "replaced": BOOL, "by": NAME}),
}  # fmt: skip
