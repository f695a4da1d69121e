/*
 * edgellm.h - LLM inference for robots and devices.  C99 and C++11.  Generated from src/capi, do not edit.
 *
 * Nothing here prints, exits, aborts or unwinds into the caller.
 *
 * Errors    A function that can fail returns an edgellm_status; below 0 it failed, and edgellm_last_error() says what
 *           was wrong and where.  A call that failed has changed nothing and written nothing, with two exceptions:
 *           edgellm_load sets *out to NULL, and EDGELLM_E_BUFFER comes with the length that is needed.
 * Pointers  NULL where it is not allowed, a misaligned pointer and a wrong handle are EDGELLM_E_ARG.  Any other pointer
 *           must be valid for the length that goes with it.  Inputs are only read, and copied where they are needed
 *           longer than the call, except edgellm_load_params.data.  Inputs and outputs may be the same memory.
 * Handles   The caller owns what edgellm_load, edgellm_ref and edgellm_session_new give, and frees it, in any order.
 *           Nothing else that comes out of the library is to be freed: it is a view, and its life is written there.
 * Threads   "Any thread" means: any number of threads at once.  "The session's caller only" means: one thread at a time,
 *           whichever; a second one gets EDGELLM_E_BUSY at once.
 * fork()    Handles stay with the parent: in the child they are EDGELLM_E_FORKED, and freeing them does nothing.
 * Structs   grow at the end.  Set them up with their _init macro (or, where there is none, set struct_size to the sizeof):
 *           bytes that this library does not know must be zero, else EDGELLM_E_UNSUPPORTED; fields that the caller does
 *           not have get their defaults.  Of output structs, only what both know is written.
 */

#ifndef EDGELLM_H
#define EDGELLM_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#  define EDGELLM_API __attribute__((visibility("default")))
#  define EDGELLM_CHECK __attribute__((warn_unused_result))
#else
#  define EDGELLM_API
#  define EDGELLM_CHECK
#endif

/* As a length: the text is NUL-terminated. */
#define EDGELLM_NUL ((size_t)-1)

/* Set all of a struct to its defaults: edgellm_load_params p; edgellm_load_params_init(&p); */
#define edgellm_load_params_init(p) edgellm_load_params_init_((p), sizeof *(p))
#define edgellm_session_params_init(p) edgellm_session_params_init_((p), sizeof *(p))
#define edgellm_sampling_init(p) edgellm_sampling_init_((p), sizeof *(p))
#define edgellm_event_init(ev) edgellm_event_init_((ev), sizeof *(ev))

// Done.
#define EDGELLM_OK 0

// Generation is over: see event.finish.
#define EDGELLM_END 1

// The deadline came first, nothing is lost: call again.
#define EDGELLM_AGAIN 2

// An argument is wrong: NULL, misaligned, a bad length, bad UTF-8, an unknown flag, not a handle of that kind.
#define EDGELLM_E_ARG -1

// The call is not allowed now.
#define EDGELLM_E_STATE -2

// Another thread is inside this session.
#define EDGELLM_E_BUSY -3

// The buffer is too small: *n says what is needed, nothing else was written.
#define EDGELLM_E_BUFFER -4

// Memory of the host could not be had, or load_params.memory_limit is not enough.
#define EDGELLM_E_NOMEM -5

// Memory of the device could not be had.
#define EDGELLM_E_DEVICE_MEM -6

// The operating system refused: edgellm_last_errno() has its code.
#define EDGELLM_E_IO -7

// The file is damaged or hostile.
#define EDGELLM_E_FORMAT -8

// The file is fine, this build cannot run it; or the caller's struct is newer and uses what it added.
#define EDGELLM_E_UNSUPPORTED -9

// A checksum or signature does not match.
#define EDGELLM_E_INTEGRITY -10

// The context is full.
#define EDGELLM_E_CONTEXT -11

// Cancelled, by edgellm_session_cancel, edgellm_session_free or on_progress.
#define EDGELLM_E_CANCELLED -12

// A grammar was rejected, or cannot go on.
#define EDGELLM_E_GRAMMAR -13

// A saved state belongs to another model, layout or version.
#define EDGELLM_E_MISMATCH -14

// The device's driver is missing, the device was lost, or a kernel failed.
#define EDGELLM_E_DEVICE -15

// The handle was made before fork() and used in the child.
#define EDGELLM_E_FORKED -16

// A bug of ours, caught: the session can only be freed.
#define EDGELLM_E_INTERNAL -99

// The interface that this header describes; the library's is edgellm_abi_version(). While 0, every minor may break.
#define EDGELLM_ABI_MAJOR 0

// Grows with every addition to the interface.
#define EDGELLM_ABI_MINOR 1

// Nothing at all.
#define EDGELLM_LOG_OFF 0

// What failed.
#define EDGELLM_LOG_ERROR 1

// What is probably not meant so.
#define EDGELLM_LOG_WARN 2

// What was done: loads and their figures.
#define EDGELLM_LOG_INFO 3

// Everything.
#define EDGELLM_LOG_DEBUG 4

// load_params.device: the first CUDA device that can run the model, else the CPU.
#define EDGELLM_DEVICE_AUTO -1

// load_params.device and edgellm_device_info.device of the CPU; CUDA devices have the driver's numbers, from 0.
#define EDGELLM_DEVICE_CPU -2

// Locks weights, keys, values and activations in memory, so that they are never swapped out; implies EDGELLM_LOAD_PREFAULT.
// Load and session_new fail with E_NOMEM where the system does not allow it. Of memory on a device: always so.
#define EDGELLM_LOAD_MLOCK 1

// Read the file into memory instead of mapping it.
#define EDGELLM_LOAD_NO_MMAP 2

// Touches all memory and code that steps use when the model is loaded and when a session is made, which runs two tokens for
// it: no step meets a page fault, the first one neither, unless the system takes pages away again. Embeddings that would be
// read from the mapped file are copied.
#define EDGELLM_LOAD_PREFAULT 8

// With EDGELLM_DEVICE_AUTO: where no CUDA device can run the model, the load fails with E_DEVICE, E_DEVICE_MEM or
// E_UNSUPPORTED, instead of going on to the CPU, which is many times slower.
#define EDGELLM_LOAD_NO_GPU_FALLBACK 16

// Weights dequantized to f32 and activations in f32: slow and large, for checking results. Activations that the model
// itself rounds to int8 (BitNet) are rounded.
#define EDGELLM_LOAD_EXACT 256

// On a CUDA device: generated tokens take the way of prompts, with activations in f16 instead of int8. More exact, several
// times slower, and then a token's bits are the same whether it was generated or given. On the CPU: of no effect.
#define EDGELLM_LOAD_F16_ACTIVATIONS 512

// The order of codes in the official bitnet-b1.58-2B-4T-gguf, and in what bitnet.cpp's Python converter writes: blocks of
// 128 weights.
#define EDGELLM_I2S_BLOCK128 0

// What bitnet.cpp's quantizer writes on ARM: blocks of 64 weights.
#define EDGELLM_I2S_BLOCK64 1

// What bitnet.cpp's quantizer writes on x86 where it was built without ACT_PARALLEL: groups of 4 rows.
#define EDGELLM_I2S_ROWS4 2

// Add BOS and EOS as the model wants.
#define EDGELLM_TOK_BOS 1

// Tokenize: "<|im_end|>" in the text is a special token. Off for text of a user! Detokenize: special tokens give their
// names; without it, nothing.
#define EDGELLM_TOK_SPECIAL 2

// The text is a JSON schema; the output is JSON that it accepts. References stay within the text ("#/$defs/name"); what
// is not supported is refused by name. Members come in the order of "properties". Between values there may be a space, or
// a line break with up to 32 spaces, unless the schema has a member "x-guidance" that says otherwise, as llguidance
// documents it. The digits of a "number" have no bound: give max_tokens.
#define EDGELLM_GRAMMAR_JSON_SCHEMA 1

// The text is a regular expression, in the syntax of Rust's crate regex without anchors; all of the output matches it.
#define EDGELLM_GRAMMAR_REGEX 2

// The text is a grammar in llguidance's variant of Lark; the output is a sentence of its rule "start".
#define EDGELLM_GRAMMAR_LARK 3

// The text is a JSON array of strings; the output is one of them.
#define EDGELLM_GRAMMAR_CHOICE 4

// The text is an array of tools as in the OpenAI chat API; the output is calls of them, each with a name and arguments
// that its "parameters" accept, in the call format of the model's own chat template, which is found by rendering calls.
#define EDGELLM_GRAMMAR_TOOLS 5

// The grammar governs from the first generated token on.
#define EDGELLM_GRAMMAR_NOW 0

// Text is free until grammar_trigger has been generated; what follows it the grammar governs. Of EDGELLM_GRAMMAR_TOOLS, a
// trigger with which the calls begin is a part of them, and without one the model's own beginning of a call is it.
#define EDGELLM_GRAMMAR_ON_TRIGGER 1

// F16; of a model loaded with EDGELLM_LOAD_EXACT, f32, which then is the only choice.
#define EDGELLM_KV_AUTO 0

// Half precision.
#define EDGELLM_KV_F16 1

// int8 in blocks of 32 values that share a 16-bit scale: 53 % of the memory of F16, for contexts that would not fit
// otherwise. As with F16 the bits of the logits do not depend on what computes them, but they are other bits. Mean KL
// divergence from exact logits over English prose: SmolLM2-135M (Q4_1, 1024 tokens) 0.0030, with F16 0.0028;
// Qwen2.5-0.5B (Q4_K_M, 512 tokens) 0.00055, with F16 0.00046. That is the set `plain` of
// `tests/reference/compare.py MODEL.gguf --tokens N --engines edgellm,edgellm-kv-i8`.
#define EDGELLM_KV_I8 2

// The generation ends with EDGELLM_FINISH_LENGTH.
#define EDGELLM_FULL_STOP 0

// Of the tokens after the first n_keep the older half is dropped, and generation goes on. What follows them is computed anew
// at its new positions, by steps like a prompt's (EDGELLM_EV_PREFILL, AGAIN at a deadline). edgellm_session_length shrinks.
// edgellm_session_prompt and _append drop nothing: more than n_ctx stays E_CONTEXT.
#define EDGELLM_FULL_SHIFT 1

// Draft tokens by what followed the same tokens before, in the prompt or the output, or by what a grammar forces, and
// compute them along with the one that is certain: the same tokens as without it, sooner where text repeats (code that is
// edited, JSON that is echoed). A step still gives one token; those that were drafted well take only the last part of a pass.
// stats.tokens_drafted and stats.tokens_accepted say how it goes. On the CPU only.
#define EDGELLM_SAMPLING_PROMPT_LOOKUP 1

// Nothing happened.
#define EDGELLM_EV_NONE 0

// A chunk of the prompt is in; no text.
#define EDGELLM_EV_PREFILL 1

// One token is committed; its text may be empty: half a character, or held back for a stop text.
#define EDGELLM_EV_TOKEN 2

// Generation is over; `text` holds what was still held back.
#define EDGELLM_EV_END 3

// It is not over.
#define EDGELLM_FINISH_NONE 0

// The model ended it.
#define EDGELLM_FINISH_EOS 1

// A stop text or stop token came.
#define EDGELLM_FINISH_STOP 2

// max_tokens are out, or the context is full.
#define EDGELLM_FINISH_LENGTH 3

// The grammar is complete: nothing may follow. (Where something may, the model ends it: EDGELLM_FINISH_EOS.)
#define EDGELLM_FINISH_GRAMMAR 4

// A compiled grammar: immutable, used by any number of sessions of its model and threads at once.
typedef struct edgellm_grammar edgellm_grammar;

// A loaded model: immutable, counted by reference (edgellm_ref, edgellm_free), used by any number of threads at once.
typedef struct edgellm_model edgellm_model;

// One sequence being generated. One caller at a time; edgellm_session_cancel, _run, _length and _stats from any thread.
typedef struct edgellm_session edgellm_session;

// What a call came to: 0 = done, above 0 = not an error, below 0 = error. Numbers are never reused.
// Not a C enum, whose size would depend on -fshort-enums.
typedef int32_t edgellm_status;

// Receives one line of log. `target` is the part of the library that speaks ("edgellm::model"), NUL-terminated; `text`
// is `len` bytes of UTF-8, also NUL-terminated, and both live until the function returns. It is called on the thread
// that logs, maybe on several at once, and must not unwind or longjmp. It may call edgellm_set_log.
typedef void (*edgellm_log_fn)(void *user, int32_t level, const char *target, const char *text, size_t len);

// What a device is. Set struct_size to sizeof(edgellm_device_info) before the call.
typedef struct edgellm_device_info {
    // Set by the caller.
    uint32_t struct_size;
    // EDGELLM_DEVICE_CPU, or the number of a CUDA device.
    int32_t device;
    // What its maker calls it; NUL-terminated, as the next one is.
    char name[64];
    // What it runs: of the CPU the kernel table that is used, for example "aarch64-dotprod"; of a CUDA device "sm_87".
    char isa[32];
    // In bytes.
    uint64_t memory_total;
    // What could be had now. Of the CPU and of devices that share its memory: what Linux calls available.
    uint64_t memory_available;
    // 1 when the device shares the memory of the CPU, as on Jetson.
    uint32_t unified_memory;
    // 1, or 0 when this library cannot use the device now; then edgellm_last_error() says why.
    uint32_t usable;
    // Of the CPU, the cores of which n_threads = 0 makes threads; of a CUDA device all its multiprocessors.
    uint32_t big_cores;
    // Of the CPU, the CPUs that this process may use; of a CUDA device its multiprocessors.
    uint32_t cores;
} edgellm_device_info;

// Called on the loading thread, at most 100 times, with what is done, 0 to 1; a value other than 0 stops the load with
// EDGELLM_E_CANCELLED. It must not unwind or longjmp.
typedef int32_t (*edgellm_progress_fn)(void *user, float done);

// Called in each worker thread: when it starts, after its CPUs and scheduling are set (start = 1), and when it ends
// (start = 0). `index` counts from 0, as in the threads' names "edgellm-w0", ... Workers start during edgellm_load and end
// when the model and its sessions are freed, or when a load fails; each end follows a start. The thread has 256 KiB of
// stack. It must not unwind or longjmp, nor call edgellm functions.
typedef void (*edgellm_thread_fn)(void *user, uint32_t index, int32_t start);

// What to load and how. Exactly one of `path` and `data` is set.
typedef struct edgellm_load_params {
    // Set by edgellm_load_params_init.
    uint32_t struct_size;
    // EDGELLM_LOAD_*, or-ed.
    uint32_t flags;
    // A GGUF file, NUL-terminated; of a split model the first part.
    const char *path;
    // A GGUF file in memory. The caller keeps it, unchanged, until the model and all its sessions are freed.
    const void *data;
    // In bytes.
    size_t data_len;
    // Threads that compute a step, the caller's included, at most 1024. 1 = the caller's alone, no others are made.
    // 0 = one per CPU of cpu_mask, or without a mask one per big core, in both cases as far as this process may use them.
    // A core is big when it is at least half as fast as the fastest; its hyperthreads count once; a quota of the control
    // group counts. More threads than cores work, and gain nothing.
    uint32_t n_threads;
    // How long an idle worker thread spins before it sleeps, in microseconds; 0 = it sleeps at once.
    uint32_t spin_us;
    // May be NULL.
    edgellm_progress_fn on_progress;
    // Handed to on_progress.
    void *on_progress_user;
    // The CPUs that worker threads may run on: bit i % 64 of word i / 64 is CPU i. NULL = the big cores, when there are
    // others and n_threads has a core for each; else any. A mask without a CPU that this process may use is E_ARG. The
    // caller's own thread is left as it is in every respect: pin it, and schedule it, as you like.
    const uint64_t *cpu_mask;
    // How many words cpu_mask has; 0 with NULL.
    size_t cpu_mask_words;
    // How worker threads are scheduled, by the system's numbers (Linux: SCHED_OTHER 0, SCHED_FIFO 1, SCHED_RR 2,
    // SCHED_BATCH 3, SCHED_IDLE 5); -1 = as the thread that loads. What the system does not allow fails the load with
    // E_IO, what it does not have with E_ARG. A real-time worker that spins keeps others from its CPU for spin_us.
    int32_t sched_policy;
    // Within sched_policy, which must be set then; -1 = the policy's lowest.
    int32_t sched_priority;
    // May be NULL.
    edgellm_thread_fn on_thread;
    // Handed to on_thread. Valid until the last worker thread has ended.
    void *on_thread_user;
    // EDGELLM_I2S_*: the order of codes in I2_S tensors, which no file says of itself; a wrong one gives a model that talks
    // nonsense. Rows are a multiple of 128 weights in all of them. Files without such tensors are not affected.
    int32_t i2s_layout;
    // EDGELLM_DEVICE_AUTO, EDGELLM_DEVICE_CPU, or the number of a CUDA device, on which the model then runs, or the load
    // fails. EDGELLM_LOAD_EXACT means the CPU where the choice is free.
    int32_t device;
    // On a CUDA device: the host's CUstream, of the device's primary context, into which all sessions put the work of their
    // steps, behind what is there, and for which a step waits. It is never destroyed here: the host keeps it until the
    // model and all its sessions are freed. NULL = each session has a stream of its own.
    void *cuda_stream;
    // On a CUDA device: the priority of the sessions' own streams, as in cuStreamCreateWithPriority; smaller numbers come
    // first, 0 = as all. E_ARG when the device has no such priority, or beside cuda_stream, which has its own. This and
    // cuda_stream are E_ARG with EDGELLM_DEVICE_CPU, and of no effect when EDGELLM_DEVICE_AUTO has come to the CPU.
    int32_t cuda_priority;
    // 0.
    uint32_t reserved0;
    // What the model and all its sessions may take of memory together, on the host and on the device, in bytes; 0 = any.
    // What would be more is E_NOMEM, and says how much it is. edgellm_plan_memory says what is counted, and how much of it
    // there will be.
    uint64_t memory_limit;
} edgellm_load_params;

// Text that somebody else owns: `len` bytes at `ptr`, not NUL-terminated. How long it lives is said where it is given.
typedef struct edgellm_str {
    // May be NULL when len is 0.
    const char *ptr;
    // In bytes.
    size_t len;
} edgellm_str;

// What a model is. Set struct_size to sizeof(edgellm_model_info) before the call.
typedef struct edgellm_model_info {
    // Set by the caller.
    uint32_t struct_size;
    // Entries of the vocabulary, which is also the number of logits.
    uint32_t n_vocab;
    // Tokens of context that the model was trained with.
    uint32_t n_ctx_train;
    // Layers.
    uint32_t n_layers;
    // Weights, counted.
    uint64_t n_params;
    // Memory that the weights take in this process, mapped or not, in bytes; 0 when they are on a CUDA device.
    uint64_t weight_bytes_host;
    // Architecture, for example "llama". This and the next two: valid as long as the model.
    struct edgellm_str arch;
    // What the file calls itself; may be empty.
    struct edgellm_str name;
    // The format of most weights, for example "Q4_K"; with others "Q4_K+Q6_K".
    struct edgellm_str quant;
    // 1 when edgellm_chat_render has a template to work with, else 0.
    uint32_t has_chat_template;
    // How many tokens end a generation.
    uint32_t n_eos;
    // Memory that the weights take on a CUDA device, in bytes; 0 when they are on the CPU.
    uint64_t weight_bytes_device;
    // Names the model as the owner of saved sessions: a hash of the file's header (metadata, vocabulary, names and places of
    // tensors), of four samples of every tensor, and of the choice of i2s_layout. It tells apart models that were trained,
    // converted or quantized differently; a few weights changed in between the samples it does not see, nor is it a
    // protection against forgery.
    uint8_t fingerprint[32];
} edgellm_model_info;

// A token: an index into the model's vocabulary. -1 where there is none.
typedef int32_t edgellm_token;

// How a session is made.
typedef struct edgellm_session_params {
    // Set by edgellm_session_params_init.
    uint32_t struct_size;
    // 0: there are none yet.
    uint32_t flags;
    // How many tokens the session can hold, at most n_ctx_train; 0 = n_ctx_train or 4096, whichever is less.
    uint32_t n_ctx;
    // Tokens of the prompt per step, at the most; 0 = 512.
    uint32_t prefill_chunk;
    // EDGELLM_KV_*: what the session keeps of the keys and values of past tokens.
    int32_t kv_type;
    // EDGELLM_FULL_*: what happens when a token is to be generated and n_ctx is reached.
    int32_t on_full;
    // With EDGELLM_FULL_SHIFT: the first tokens, for example a system prompt, that are never dropped; at most n_ctx - 2.
    uint32_t n_keep;
    // What a step should stay within, in microseconds; 0 = throughput first. A step takes as many tokens of the prompt as it
    // can in that time by what steps took before, at least one and at most prefill_chunk; a generated token takes what it
    // takes. It is a wish: edgellm_step_until keeps to a deadline.
    uint32_t step_budget_us;
} edgellm_session_params;

// The number is added to the logit of the token before it is sampled.
typedef struct edgellm_logit_bias {
    // Which token.
    edgellm_token token;
    // Finite, or -infinity to forbid the token.
    float bias;
} edgellm_logit_bias;

// How a token is chosen from the logits. The defaults are greedy.
typedef struct edgellm_sampling {
    // Set by edgellm_sampling_init.
    uint32_t struct_size;
    // EDGELLM_SAMPLING_*, or-ed.
    uint32_t flags;
    // 0 = greedy: the highest logit, of equal ones the lowest token.
    float temperature;
    // Only the k most likely tokens; 0 = off.
    int32_t top_k;
    // Only the most likely tokens whose probabilities together reach this; 1 = off.
    float top_p;
    // Only tokens at least this many times as likely as the most likely one; 0 = off.
    float min_p;
    // Divides the positive and multiplies the negative logits of recent tokens; 1 = off.
    float repeat_penalty;
    // Subtracted from a logit for each recent occurrence; 0 = off.
    float frequency_penalty;
    // Subtracted from the logit of each recent token; 0 = off.
    float presence_penalty;
    // How many of the last tokens are recent.
    uint32_t penalty_last_n;
    // (seed, position) decides, not the history of calls.
    uint64_t seed;
    // 0 = until the model ends or the context is full.
    uint32_t max_tokens;
    // Other than 0: go on after a token that ends a generation.
    uint32_t ignore_eos;
    // `n_bias` entries.
    const struct edgellm_logit_bias *bias;
    // At most the size of the vocabulary.
    size_t n_bias;
    // `n_stops` texts, UTF-8: generation ends before any of them.
    const struct edgellm_str *stops;
    // At most 1024.
    size_t n_stops;
    // `n_stop_tokens` tokens: generation ends at any of them.
    const edgellm_token *stop_tokens;
    // At most the size of the vocabulary.
    size_t n_stop_tokens;
    // How many of the most likely tokens each event tells, at most 20.
    uint32_t n_alternatives;
    // EDGELLM_GRAMMAR_NOW or EDGELLM_GRAMMAR_ON_TRIGGER.
    uint32_t grammar_mode;
    // Only tokens that this grammar allows are sampled; NULL = any. It must be of the session's model; the session takes a
    // reference of its own. It begins at the next token, unless it is the one that is set already, with the same mode and
    // trigger, which goes on; each _prompt and _append begins it anew. After _rewind it is where it was after the tokens
    // that are left.
    struct edgellm_grammar *grammar;
    // With EDGELLM_GRAMMAR_ON_TRIGGER, UTF-8 of at most 256 bytes.
    struct edgellm_str grammar_trigger;
} edgellm_sampling;

// What a model and one session of it take of memory, in bytes. Buffers are counted in the units in which the system (whole
// pages) or the device (2 MiB) gives them, and so are the tokenizer and the stacks of threads; not counted are grammars, small
// objects, some KiB in all, and what the CUDA driver keeps for itself. Set struct_size to sizeof(edgellm_plan) before the call.
typedef struct edgellm_plan {
    // Set by the caller.
    uint32_t struct_size;
    // 1 when `needed` is within memory_limit, and all of it within what is available now; else 0.
    uint32_t fits;
    // As long as the model lives: weights that are not on a device, the tokenizer, the stacks of threads.
    uint64_t weights_host;
    // Weights on the device.
    uint64_t weights_device;
    // The keys and values of one session, on the CPU,
    uint64_t kv_host;
    // or on the device.
    uint64_t kv_device;
    // What else one session takes of the host's memory.
    uint64_t scratch_host;
    // And of the device's.
    uint64_t scratch_device;
    // Of the model's file, mapped while it is loaded; the rows of some embeddings are read from there later. The system
    // takes these pages back when it needs memory: no other number counts them.
    uint64_t mapped_file;
    // The most that loading takes at a time, of host and device together.
    uint64_t peak_load;
    // What could be had of the host's memory now: what Linux calls available, or what control groups leave, if less.
    uint64_t available_host;
    // And of the device's; where it is the host's, what Linux calls available.
    uint64_t available_device;
    // The longest context of such a session that fits; 0 = none.
    uint32_t n_ctx_fits;
    // Where the model would run: EDGELLM_DEVICE_CPU, or the number of a CUDA device.
    int32_t device;
    // The least memory_limit with which the model can be loaded and one such session made.
    uint64_t needed;
} edgellm_plan;

// A token that could have come.
typedef struct edgellm_alternative {
    // The token.
    edgellm_token token;
    // Natural logarithm of its probability in the model, before any sampling setting.
    float logprob;
} edgellm_alternative;

// What a step did.
typedef struct edgellm_event {
    // Set by edgellm_event_init.
    uint32_t struct_size;
    // EDGELLM_EV_*.
    int32_t kind;
    // EDGELLM_FINISH_*.
    int32_t finish;
    // The committed token, or the one that ended the generation; -1 = none.
    edgellm_token token;
    // Natural logarithm of the token's probability in the model, before any sampling setting.
    float logprob;
    // How many entries `alternatives` has: with a token, sampling.n_alternatives.
    uint32_t n_alternatives;
    // Whole UTF-8 characters; valid until the next call on this session except _cancel, _run, _length and _stats.
    struct edgellm_str text;
    // Tokens of the prompt that are in, of those that had to be computed.
    uint64_t prompt_done;
    // Tokens of the prompt that had to be computed.
    uint64_t prompt_total;
    // Tokens that the session holds.
    uint64_t length;
    // How long the step took, in nanoseconds.
    uint64_t ns;
    // The most likely tokens at the place of this one, the likeliest first; valid as long as `text`.
    const struct edgellm_alternative *alternatives;
} edgellm_event;

// What the steps of a session cost, in nanoseconds and counts. Set struct_size to sizeof(edgellm_stats) before the call.
typedef struct edgellm_stats {
    // Set by the caller.
    uint32_t struct_size;
    // Steps.
    uint32_t steps;
    // Tokens given to _prompt and _append.
    uint64_t tokens_prompt;
    // Of these, tokens that were there already and were not computed again.
    uint64_t tokens_reused;
    // Tokens generated.
    uint64_t tokens_out;
    // Loading the model.
    uint64_t ns_load;
    // From _prompt or _append to the first token of the last run.
    uint64_t ns_first_token;
    // Computing prompts.
    uint64_t ns_prefill;
    // Computing generated tokens.
    uint64_t ns_decode;
    // Choosing tokens.
    uint64_t ns_sample;
    // Of the decode steps, half took at most this. The percentiles are exact to 7 %.
    uint64_t step_ns_p50;
    // 95 of 100 took at most this.
    uint64_t step_ns_p95;
    // 99 of 100 took at most this.
    uint64_t step_ns_p99;
    // The longest.
    uint64_t step_ns_max;
    // Memory of the KV cache, in bytes.
    uint64_t kv_bytes;
    // Finding which tokens a grammar allows, and following it.
    uint64_t ns_grammar;
    // What the next step will take, by what steps took before: for admission control. 0 = not known yet.
    uint64_t next_step_ns;
    // Calls that returned AGAIN: they were not done by their deadline.
    uint64_t deadline_misses;
    // The longest that one of these came back after its deadline.
    uint64_t deadline_late_ns_max;
    // Pages of memory that were not there when a step needed them: of the caller's thread in this session's steps, and of
    // worker threads in whatever they did since the session was made, as far as they have slept since. Linux only, else 0.
    uint64_t page_faults_in_step;
    // How often the caller's thread asked for memory in this session's steps; UINT64_MAX where that is not counted: the library
    // was built without the feature `count-allocations`.
    uint64_t allocations_in_step;
    // Memory that the model and all its sessions have taken on the host, in bytes, as edgellm_plan_memory counts it.
    uint64_t host_bytes;
    // And on the device.
    uint64_t device_bytes;
    // The most of the host's that was taken at a time, loading the model included.
    uint64_t host_peak_bytes;
    // What the machine took since the session was made or its counts were reset, in joules: by RAPL the energy of all
    // processor packages, on boards with an INA3221 that of the rail of the whole board, or else of all its rails, as mean of
    // the power at two calls of this function times the time between them. -1 where there is no meter that may be read.
    double energy_joule;
    // Tokens that prompt lookup drafted and a pass computed.
    uint64_t tokens_drafted;
    // Of these, tokens that came.
    uint64_t tokens_accepted;
} edgellm_stats;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The name of a status, for example "EDGELLM_E_ARG"; "unknown status" for a number that is none.
// A static string, never NULL. Any thread.
EDGELLM_API const char *edgellm_status_name(edgellm_status status);

// Why this thread's last failed call failed: what was wrong and where. UTF-8, NUL-terminated, at most 1023 bytes.
//
// Never NULL; "" until a call of this thread fails. Calls that succeed leave it as it is (but edgellm_device_get says
// why a device is not usable): look at it after a status below 0. The pointer is this thread's own and stays valid as
// long as the thread; the text behind it changes with this thread's next failed call.
EDGELLM_API const char *edgellm_last_error(void);

// The errno of this thread's last failed call when that was EDGELLM_E_IO and the system gave one, else 0.
EDGELLM_API int32_t edgellm_last_errno(void);

// EDGELLM_ABI_MAJOR << 16 | EDGELLM_ABI_MINOR of the loaded library, for a host that wants to refuse early. Any thread.
EDGELLM_API uint32_t edgellm_abi_version(void);

// The version of the loaded library, for example "0.1.0". A static string, never NULL. Any thread.
EDGELLM_API const char *edgellm_version(void);

// How the library was built, as a JSON object: {"version", "features": [..], "target", "kernels": [..], "cuda": [..]};
// "kernels" are the tables that this CPU can run, best first, and "cuda", which is there with that feature, what the
// device code was compiled for, as in "sm_87". A static string, never NULL. Any thread.
EDGELLM_API const char *edgellm_build_info(void);

// Sets the function that receives the log of the whole process, and up to which level; function = NULL or EDGELLM_LOG_OFF:
// none, as at the start. A level out of range means the nearest.
//
// Any thread, also from inside the function. A call of the previous function that another thread has begun may still
// be running when this returns. Where a Rust program links this library and has set a logger of its own for the `log`
// crate, that logger receives everything and this function does nothing.
EDGELLM_API
void edgellm_set_log(edgellm_log_fn function,
                     void *user,
                     int32_t level);

// How many devices there are: the CPU, and the CUDA devices if the library was built for them and there is a driver. Any
// thread; the first call opens the driver.
EDGELLM_API
uint32_t edgellm_device_count(void);

// Says what device `index` is: 0 is the CPU, then come the CUDA devices in the driver's order.
//
// Any thread. What memory a CUDA device has left is asked in its primary context, which takes a while where this process
// does not use the device yet. Errors: E_ARG (no such index), E_DEVICE (no such index, because CUDA is not there: says
// what is missing).
EDGELLM_API
EDGELLM_CHECK
edgellm_status edgellm_device_get(uint32_t index,
                                  struct edgellm_device_info *out);

// Use edgellm_load_params_init.
EDGELLM_API void edgellm_load_params_init_(struct edgellm_load_params *p, size_t size);

// Loads a model and checks all of it. *out is the new model, the caller's to free; on failure NULL.
//
// Any thread; waits for the disk. Everything in *p is copied during the call, except `data`. Errors: E_ARG, E_IO (no such
// file; see edgellm_last_errno), E_FORMAT (damaged), E_UNSUPPORTED (what this build cannot run, by name), E_NOMEM,
// E_CANCELLED (by on_progress); of a CUDA device that was named, E_DEVICE and E_DEVICE_MEM.
EDGELLM_API
EDGELLM_CHECK
edgellm_status edgellm_load(const struct edgellm_load_params *p,
                            struct edgellm_model **out);

// One more reference to a model: returns `m` itself, to be freed once more. NULL when `m` is not a model handle. Any
// thread.
EDGELLM_API struct edgellm_model *edgellm_ref(struct edgellm_model *m);

// Gives a reference back. Sessions keep their own, so a model may be freed before them. NULL is fine. Any thread. In a
// child process after fork() it does nothing: the memory goes with the process.
EDGELLM_API void edgellm_free(struct edgellm_model *m);

// Says what the model is. Any thread. Errors: E_ARG.
EDGELLM_API
EDGELLM_CHECK
edgellm_status edgellm_model_get_info(const struct edgellm_model *m,
                                      struct edgellm_model_info *out);

// One value of the file's metadata as text: strings as they are, numbers in decimal, booleans "true" or "false".
//
// `key` is UTF-8, `key_len` bytes or EDGELLM_NUL. `buf` has `cap` bytes and is not NUL-terminated; *n is the length in
// bytes. Any thread. Errors: E_ARG (also: no such key), E_BUFFER (*n is the length needed), E_UNSUPPORTED (an array).
EDGELLM_API
EDGELLM_CHECK
edgellm_status edgellm_model_get_meta(const struct edgellm_model *m,
                                      const char *key,
                                      size_t key_len,
                                      char *buf,
                                      size_t cap,
                                      size_t *n);

// Text to tokens. `text` is UTF-8, `len` bytes or EDGELLM_NUL; `flags` are EDGELLM_TOK_*, or-ed; `out` has room for `cap`
// tokens, *n is how many there are. NULL with cap = 0 asks for *n alone.
//
// Any thread. Errors: E_ARG, E_BUFFER (*n is what is needed), E_UNSUPPORTED (no vocabulary), E_NOMEM.
EDGELLM_API
EDGELLM_CHECK
edgellm_status edgellm_tokenize(const struct edgellm_model *m,
                                const char *text,
                                size_t len,
                                uint32_t flags,
                                edgellm_token *out,
                                size_t cap,
                                size_t *n);

// Tokens to text. `flags` is 0 or EDGELLM_TOK_SPECIAL; `buf` has `cap` bytes and is not NUL-terminated, *n is the length
// in bytes. Tokens that end inside a character give incomplete UTF-8. NULL with cap = 0 asks for *n alone.
//
// Any thread. Errors: E_ARG (also: a token out of range), E_BUFFER (*n is what is needed), E_UNSUPPORTED (no
// vocabulary), E_NOMEM.
EDGELLM_API
EDGELLM_CHECK
edgellm_status edgellm_detokenize(const struct edgellm_model *m,
                                  const edgellm_token *t,
                                  size_t n_tokens,
                                  uint32_t flags,
                                  char *buf,
                                  size_t cap,
                                  size_t *n);

// The bytes of one token; of a special token its name. *out is valid as long as the model.
//
// Any thread. Errors: E_ARG (also: a token out of range), E_UNSUPPORTED (no vocabulary).
EDGELLM_API
EDGELLM_CHECK
edgellm_status edgellm_token_bytes(const struct edgellm_model *m,
                                   edgellm_token t,
                                   struct edgellm_str *out);

// 1 when the token ends a generation, else 0; also 0 when `m` is no model or `t` no token of it. Any thread.
EDGELLM_API int32_t edgellm_token_is_eos(const struct edgellm_model *m, edgellm_token t);

// Renders a conversation with the model's chat template: text for edgellm_tokenize with EDGELLM_TOK_SPECIAL.
//
// `messages`: JSON as in the OpenAI chat API, [{"role": "user", "content": "..."}, ..]. `tools`: JSON in the same manner,
// NULL = none. `options`: a JSON object of variables for the template, NULL = none; "add_generation_prompt" is true
// unless it says otherwise. Each length is in bytes or EDGELLM_NUL. `buf` has `cap` bytes and is not NUL-terminated; *n
// is the length in bytes. NULL with cap = 0 asks for *n alone.
//
// Any thread. Errors: E_ARG (not such JSON, or the template refused it), E_BUFFER (*n is what is needed), E_UNSUPPORTED
// (the model has no template, or the library was built without feature `chat`), E_NOMEM.
EDGELLM_API
EDGELLM_CHECK
edgellm_status edgellm_chat_render(const struct edgellm_model *m,
                                   const char *messages,
                                   size_t messages_len,
                                   const char *tools,
                                   size_t tools_len,
                                   const char *options,
                                   size_t options_len,
                                   char *buf,
                                   size_t cap,
                                   size_t *n);

// Compiles a grammar for sessions of a model. *out is the caller's to free.
//
// `kind`: EDGELLM_GRAMMAR_*. `text`: UTF-8, `len` bytes or EDGELLM_NUL, at most 256 KiB (of a regular expression 16, of a
// Lark grammar 32). Any thread; takes milliseconds. The first grammar of a model also builds an index of its vocabulary,
// which stays with the model: for 152,000 tokens 60 MB, in 0.3 s. edgellm_plan_memory and memory_limit count neither it nor
// what grammars take. The work is bounded whatever the text is, and done on a thread of its own, so that the caller's stack
// may be small. Errors: E_GRAMMAR (what is wrong with the text and where, or which bound it exceeds), E_ARG, E_UNSUPPORTED
// (no vocabulary; for tools no chat template, or one without calls that have JSON arguments; or the library was built without
// feature `grammar`), E_NOMEM, E_FORKED.
EDGELLM_API
EDGELLM_CHECK
edgellm_status edgellm_grammar_new(struct edgellm_model *m,
                                   int32_t kind,
                                   const char *text,
                                   size_t len,
                                   struct edgellm_grammar **out);

// Frees a grammar. Sessions keep their own references, so it may be freed while they use it. NULL is fine. Any thread. In
// a child process after fork() it does nothing: the memory goes with the process.
EDGELLM_API
void edgellm_grammar_free(struct edgellm_grammar *g);

// Use edgellm_session_params_init.
EDGELLM_API void edgellm_session_params_init_(struct edgellm_session_params *p, size_t size);

// Makes a session with all the memory that it will ever need. *out is the caller's to free. `p` = NULL: all defaults.
//
// Any thread. The session keeps its own reference to the model. Errors: E_ARG, E_NOMEM, E_FORKED; on a
// CUDA device also E_DEVICE_MEM, E_DEVICE, and E_UNSUPPORTED (keys and values in int8).
EDGELLM_API
EDGELLM_CHECK
edgellm_status edgellm_session_new(struct edgellm_model *m,
                                   const struct edgellm_session_params *p,
                                   struct edgellm_session **out);

// Frees a session. Never waits: a step that another thread is in is cancelled, and that thread frees the session when
// it leaves. NULL is fine. Any thread; no call on this session may begin after it. In a child process after fork() it
// does nothing: the memory goes with the process.
EDGELLM_API void edgellm_session_free(struct edgellm_session *s);

// Use edgellm_sampling_init.
EDGELLM_API void edgellm_sampling_init_(struct edgellm_sampling *p, size_t size);

// Sets how the session chooses tokens, from the next one on. Everything is copied. `p` = NULL: all defaults.
//
// The session's caller only. Errors: E_ARG (a number that is not finite or out of range, a token out of range, a stop
// text that is empty or not UTF-8, a grammar of another model), E_UNSUPPORTED (prompt lookup on a CUDA device), E_BUSY, E_NOMEM, E_FORKED, E_INTERNAL.
EDGELLM_API
EDGELLM_CHECK
edgellm_status edgellm_session_sampling(struct edgellm_session *s,
                                        const struct edgellm_sampling *p);

// Starts a run with these `n` tokens. The longest common prefix with what the session already holds is kept and need
// not be computed again (but its last token always is): *reused says how many tokens, NULL = not asked. The work is done
// by edgellm_step.
//
// The session's caller only; no memory is asked for, but by a grammar, and to replace what is shared with a fork
// (edgellm_session_fork). Errors: E_ARG (also: no tokens, or one out of range), E_CONTEXT (more than n_ctx), E_NOMEM, E_BUSY,
// E_FORKED, E_INTERNAL.
EDGELLM_API
EDGELLM_CHECK
edgellm_status edgellm_session_prompt(struct edgellm_session *s,
                                      const edgellm_token *t,
                                      size_t n,
                                      size_t *reused);

// Starts a run that goes on with these `n` tokens after what the session holds.
//
// The session's caller only; no memory is asked for without a grammar. Errors: as edgellm_session_prompt.
EDGELLM_API
EDGELLM_CHECK
edgellm_status edgellm_session_append(struct edgellm_session *s,
                                      const edgellm_token *t,
                                      size_t n);

// Keeps the first `n_keep` tokens of the session and starts a new run from there.
//
// The session's caller only; no memory is asked for, but by a grammar, and to replace what is shared with a fork
// (edgellm_session_fork). Errors: E_ARG (more than the session holds), E_NOMEM, E_BUSY, E_FORKED, E_INTERNAL.
EDGELLM_API EDGELLM_CHECK edgellm_status edgellm_session_rewind(struct edgellm_session *s, size_t n_keep);

// How many tokens the session holds; 0 when `s` is no session of this process. Any thread.
EDGELLM_API size_t edgellm_session_length(const struct edgellm_session *s);

// Says what edgellm_load and edgellm_session_new with the same parameters would take of memory, to the byte: a
// memory_limit of out.needed is enough for both, and one page less is not. `session` = NULL: all defaults. Only what files
// say of themselves is read; no weight is, and nothing is left in memory. With EDGELLM_DEVICE_AUTO the plan is for the first
// device that can run the model, whether it has room or not, while the load would go on to the CPU.
//
// Any thread; waits for the disk. Errors: as edgellm_load and edgellm_session_new for what is wrong with the parameters
// or the file; memory that is not there is no error, but out.fits.
EDGELLM_API
EDGELLM_CHECK
edgellm_status edgellm_plan_memory(const struct edgellm_load_params *load,
                                   const struct edgellm_session_params *session,
                                   struct edgellm_plan *out);

// Use edgellm_event_init.
EDGELLM_API void edgellm_event_init_(struct edgellm_event *ev, size_t size);

// At most one forward pass: one chunk of the prompt or one token. OK: *ev says what was done, call again. END: the
// generation is over, *ev says why, and so does every further step; _prompt, _append or _rewind start the next one. The
// step that takes in the last of the prompt also gives the first token.
//
// The session's caller only. After the first step no memory is asked for, and no file is ever touched. A step that fails
// leaves the session as it was before, and *ev too. Errors: E_ARG, E_STATE (nothing to go on from), E_CONTEXT,
// E_CANCELLED, E_GRAMMAR (it cannot go on: no token fits, or finding one exceeds a bound; start a new run), E_BUSY, E_DEVICE
// (the CUDA device is lost or failed: free the session), E_FORKED, E_INTERNAL.
//
// With a grammar, its parser asks for memory at each token, and gives back most of it: under a JSON schema with Qwen2.5's
// vocabulary 38 times and 53 KB at the median, 483 times and 125 KB at the 99th percentile. When the grammar is complete,
// the last token comes as any other, and the next step is END.
EDGELLM_API
EDGELLM_CHECK
edgellm_status edgellm_step(struct edgellm_session *s,
                            struct edgellm_event *ev);

// edgellm_step that gives the thread back at the first stage of a layer that ends after `deadline_ns`, a time of
// CLOCK_MONOTONIC in nanoseconds: AGAIN, nothing is lost, and the next call goes on from there. 0 = no deadline.
EDGELLM_API
EDGELLM_CHECK
edgellm_status edgellm_step_until(struct edgellm_session *s,
                                  uint64_t deadline_ns,
                                  struct edgellm_event *ev);

// Ends a run from outside: the step that it is in, or its next one, returns EDGELLM_E_CANCELLED. `run` is a number from
// edgellm_session_run, so that a late cancel cannot hit the next run; 0 = whatever runs now. It takes effect within one
// stage of a layer.
//
// Any thread, any signal handler, while the session is not freed. Nothing happens when `s` is no session.
EDGELLM_API void edgellm_session_cancel(struct edgellm_session *s, uint64_t run);

// The number of the current run, for edgellm_session_cancel. _prompt, _append and _rewind start a new one. 0 when `s` is
// no session of this process. Any thread, any signal handler.
EDGELLM_API
uint64_t edgellm_session_run(const struct edgellm_session *s);

// For samplers of your own: computes all tokens that are pending and leaves the logits of the next one. Returns AGAIN
// when `deadline_ns` came first (as for edgellm_step_until; 0 = no deadline).
//
// The session's caller only; asks for no memory after the first. Errors: as edgellm_step.
EDGELLM_API EDGELLM_CHECK edgellm_status edgellm_forward(struct edgellm_session *s, uint64_t deadline_ns);

// The logits that edgellm_forward left: *n of them (n_vocab), one per token of the vocabulary, negative infinity where the
// grammar does not let the token come next. *out is valid until the next call on this session except _cancel, _run, _length
// and _stats.
//
// The session's caller only. Errors: E_ARG, E_STATE (no edgellm_forward before), E_GRAMMAR (it cannot go on), E_BUSY,
// E_FORKED, E_INTERNAL.
EDGELLM_API
EDGELLM_CHECK
edgellm_status edgellm_logits(struct edgellm_session *s,
                              const float **out,
                              size_t *n);

// Commits a token of the caller's choice after edgellm_forward, as edgellm_step commits its own: OK or END and *ev. The token
// that completes the grammar is END, with its text.
//
// The session's caller only. Errors: E_ARG (also: a token out of range), E_STATE (no edgellm_forward before), E_CONTEXT,
// E_GRAMMAR (which does not allow the token), E_BUSY, E_FORKED, E_INTERNAL.
EDGELLM_API
EDGELLM_CHECK
edgellm_status edgellm_accept(struct edgellm_session *s,
                              edgellm_token t,
                              struct edgellm_event *ev);

// How likely these `n` tokens are after what the session holds: to rank what a robot may do next without generating it.
// logprobs[i] becomes the natural logarithm of the probability of t[i] after the session's tokens and t[0] to t[i - 1], in
// the model, before any sampling setting. Their sum is that of the whole text.
//
// The session stays as it is: what is pending of its prompt is computed first (that work is kept, and a step need not do it
// again), then these tokens in passes of prefill_chunk, and nothing of them is kept. The session's caller only; asks for no
// memory after the session's first. A failure has written nothing. Errors: E_ARG (also: no tokens, or one out of range),
// E_STATE (the session holds no tokens), E_CONTEXT (they do not fit after those that it holds), E_CANCELLED, E_NOMEM,
// E_BUSY, E_DEVICE, E_FORKED, E_INTERNAL.
EDGELLM_API
EDGELLM_CHECK
edgellm_status edgellm_score(struct edgellm_session *s,
                             const edgellm_token *t,
                             size_t n,
                             float *logprobs);

// What the session's steps took until now; `reset` other than 0 then starts all counts and percentiles anew.
//
// Any thread, also during a step. Errors: E_ARG, E_FORKED.
EDGELLM_API
EDGELLM_CHECK
edgellm_status edgellm_session_stats(const struct edgellm_session *s,
                                     struct edgellm_stats *out,
                                     uint32_t reset);

// A second session that stands where this one does: the same tokens, sampling settings and pending text. Both go on
// independently, on any threads, in whatever order they are freed. *out is the caller's to free.
//
// On the CPU the KV cache is copied on write, in pages of 256 positions: full pages are shared, the last one is copied by
// this call, and steps never write to a shared page. edgellm_session_prompt and _rewind copy one when they go back into it:
// then they ask for memory and may fail with E_NOMEM. So does a step that shifts a full context (EDGELLM_FULL_SHIFT), once.
// On a CUDA device all of the KV cache is copied by this call. Everything else that a session needs is allocated here. A
// step that AGAIN suspended starts over in the new session. Statistics start at zero.
//
// The session's caller only. Errors: E_ARG, E_NOMEM, E_BUSY, E_FORKED, E_INTERNAL; on a CUDA device also E_DEVICE_MEM,
// E_DEVICE.
EDGELLM_API
EDGELLM_CHECK
edgellm_status edgellm_session_fork(struct edgellm_session *s,
                                    struct edgellm_session **out);

// Everything that the session would go on from, as bytes: tokens, KV cache as it is stored, sampling settings, how far the
// run is, text that was held back. A session of the same model that restores it, in this process or another one, goes on bit
// for bit (on a machine and with a build that compute the same bits: for the CPU all do). A grammar is not saved, but
// where the output stands in it is: who restores the session sets the same one before.
//
// *n is the length in bytes, mostly that of the KV cache of the tokens that are in it. Nothing in the bytes is secret to
// who has them: they hold the whole conversation. A step that AGAIN suspended is saved as if it had not begun; statistics are
// not saved. The session's caller only; the session stays as it is. Errors: E_ARG, E_BUFFER (*n is the length needed),
// E_STATE (a shift has dropped the start of what a grammar governs), E_NOMEM, E_BUSY, E_DEVICE, E_FORKED, E_INTERNAL.
EDGELLM_API
EDGELLM_CHECK
edgellm_status edgellm_session_save(struct edgellm_session *s,
                                    void *buf,
                                    size_t cap,
                                    size_t *n);

// Takes over what edgellm_session_save gave, all `n` bytes of it; sampling settings too. What the session held before is
// gone, and a new run begins (edgellm_session_run). Its own n_ctx, prefill_chunk and on_full stay.
//
// All of it is checked before anything changes: whatever the error, the session is as it was. A bit that was flipped, bytes
// that are missing or too many, or what is no saved session at all: E_INTEGRITY. Another model (model_info.fingerprint),
// another kind of KV cache (kv_type, EDGELLM_LOAD_EXACT, CPU or CUDA), a version of the format that this library does not
// know: E_MISMATCH. More tokens than n_ctx: E_CONTEXT. It followed a grammar and this session has none set: E_STATE; or it
// has one that those tokens do not follow: E_MISMATCH. The checksum finds accidents, not forgers; what a forger writes is
// still checked so far that nothing but the conversation can be wrong. Memory is asked for. The session's caller only. Other
// errors: E_ARG, E_NOMEM, E_BUSY, E_FORKED, E_INTERNAL; E_DEVICE on a CUDA device, whose session may then only be freed.
EDGELLM_API
EDGELLM_CHECK
edgellm_status edgellm_session_restore(struct edgellm_session *s,
                                       const void *buf,
                                       size_t n);

// edgellm_session_save to a file descriptor: written from where it stands, one byte after the other, so that a pipe or a
// socket will do; a call that is interrupted by a signal goes on. `fd` stays the caller's.
//
// When it fails, part of it may have been written, which no restore will take. For a file that is whole or not there: write
// to a new file, fsync it, and rename it to its place. Errors: E_IO (edgellm_last_errno), and as edgellm_session_save.
EDGELLM_API
EDGELLM_CHECK
edgellm_status edgellm_session_save_fd(struct edgellm_session *s,
                                       int32_t fd);

// edgellm_session_restore from a file descriptor: read from where it stands, up to the end of what was saved and no
// further, so that several may follow one another. `fd` stays the caller's. The session changes only after all of it was
// read and checked, so that much memory is needed for a moment.
//
// Errors: E_IO (edgellm_last_errno), and as edgellm_session_restore; where `fd` then stands is not defined.
EDGELLM_API
EDGELLM_CHECK
edgellm_status edgellm_session_restore_fd(struct edgellm_session *s,
                                          int32_t fd);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* EDGELLM_H */
