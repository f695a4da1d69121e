/*
 * A driver without a device, for tests: memory is the host's, work is done at once or, while a stream is captured, kept
 * for the graph. It knows one kernel, probe_add(x, y, count, add), and any image has it.
 *
 * It counts its calls and can let the n-th one fail. After a failure from 700 on every call in the context fails with it,
 * as the real one's do.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int code;
typedef uint64_t pointer;
typedef void *handle;

enum { INVALID = 1, NOT_READY = 600, CAPTURING = 900, STICKY = 700, DEPTH = 16, WORK = 8 };

/* ---- what tests set and ask ---- */

static long calls, fail_at;
static code fail_code, lost;
static const char *failed;
#ifndef INIT
#define INIT 0
#endif
#ifndef MAJOR
#define MAJOR 9
#endif
static int init_code = INIT, device_count = 1, version = 12040, major = MAJOR, minor, integrated;
static long live, launches_ex, priority_given;

static __thread handle stack[DEPTH];
static __thread int depth;

void fake_reset(long at, code what) {
    calls = launches_ex = 0;
    fail_at = at;
    fail_code = what;
    failed = NULL;
    lost = 0;
    live = 0;
    depth = 1;
    stack[0] = (handle)0x11; /* The host's. */
}
void fake_device(int count, int driver, int capability, int unified, int init) {
    device_count = count;
    version = driver;
    major = capability / 10;
    minor = capability % 10;
    integrated = unified;
    init_code = init;
}
long fake_calls(void) { return calls; }
long fake_live(void) { return live; }
long fake_launches_ex(void) { return launches_ex; }
long fake_priority(void) { return priority_given; }
const char *fake_failed(void) { return failed; }
int fake_depth(void) { return depth; }
handle fake_current(void) { return depth > 0 ? stack[depth - 1] : NULL; }

static code counted(const char *name, int in_context) {
    if (++calls == fail_at) {
        failed = name;
        if (fail_code >= STICKY && fail_code < CAPTURING) lost = fail_code;
        return fail_code;
    }
    if (in_context && (depth == 0 || stack[depth - 1] != (handle)0x77)) return 201; /* Of another context, or of none. */
    return in_context ? lost : 0;
}
#define ENTER(in_context)                             \
    do {                                              \
        code entered = counted(__func__, in_context); \
        if (entered) return entered;                  \
    } while (0)

/* ---- devices ---- */

code cuInit(unsigned flags) {
    ENTER(0);
    return flags ? INVALID : init_code;
}
code cuDriverGetVersion(int *out) {
    ENTER(0);
    *out = version;
    return 0;
}
code cuGetErrorName(code what, const char **out) {
    *out = what == STICKY ? "CUDA_ERROR_ILLEGAL_ADDRESS" : what == 100 ? "CUDA_ERROR_NO_DEVICE" : NULL;
    return *out ? 0 : INVALID;
}
code cuGetErrorString(code what, const char **out) {
    *out = what == STICKY ? "an illegal memory access was encountered" : NULL;
    return *out ? 0 : INVALID;
}
code cuDeviceGetCount(int *out) {
    ENTER(0);
    *out = device_count;
    return 0;
}
code cuDeviceGet(int *out, int index) {
    ENTER(0);
    *out = index;
    return index < device_count ? 0 : 101;
}
code cuDeviceGetName(char *out, int len, int device) {
    ENTER(0);
    (void)device;
    memset(out, 'x', (size_t)len);
    memcpy(out, "Fake", 5);
    return 0;
}
code cuDeviceTotalMem_v2(size_t *out, int device) {
    ENTER(0);
    (void)device;
    *out = (size_t)1 << 30;
    return 0;
}
code cuDeviceGetAttribute(int *out, int which, int device) {
    ENTER(0);
    (void)device;
    *out = which == 75 ? major : which == 76 ? minor : which == 18 ? integrated : 4;
    return 0;
}
code cuDevicePrimaryCtxRetain(handle *out, int device) {
    ENTER(0);
    (void)device;
    live++;
    *out = (handle)0x77;
    return 0;
}
code cuDevicePrimaryCtxRelease_v2(int device) {
    ENTER(0);
    (void)device;
    live--;
    return 0;
}
code cuCtxPushCurrent_v2(handle context) {
    ENTER(0);
    if (depth == DEPTH) return INVALID;
    stack[depth++] = context;
    return 0;
}
code cuCtxPopCurrent_v2(handle *out) {
    ENTER(0);
    if (depth == 0) return INVALID;
    *out = stack[--depth];
    return 0;
}
code cuCtxSynchronize(void) {
    ENTER(1);
    return 0;
}
code cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    ENTER(1);
    *least = 0;
    *greatest = -5;
    return 0;
}

/* ---- memory ---- */

code cuMemGetInfo_v2(size_t *free, size_t *total) {
    ENTER(1);
    *free = (size_t)1 << 29;
    *total = (size_t)1 << 30;
    return 0;
}
code cuMemAlloc_v2(pointer *out, size_t bytes) {
    void *memory;
    ENTER(1);
    memory = bytes > (size_t)1 << 30 ? NULL : malloc(bytes);
    if (!memory) return 2;
    memset(memory, 0xa5, bytes);
    live++;
    *out = (pointer)(uintptr_t)memory;
    return 0;
}
code cuMemFree_v2(pointer memory) {
    ENTER(1);
    free((void *)(uintptr_t)memory);
    live--;
    return 0;
}
code cuMemHostAlloc(void **out, size_t bytes, unsigned flags) {
    ENTER(1);
    if (flags != 3 || bytes == 0 || posix_memalign(out, 4096, bytes)) return 2;
    memset(*out, 0xa5, bytes);
    live++;
    return 0;
}
code cuMemFreeHost(void *memory) {
    ENTER(1);
    free(memory);
    live--;
    return 0;
}
code cuMemHostGetDevicePointer_v2(pointer *out, void *memory, unsigned flags) {
    ENTER(1);
    if (flags) return INVALID;
    *out = (pointer)(uintptr_t)memory;
    return 0;
}

/* ---- streams, graphs and what is put into them ---- */

typedef struct { pointer x, y; unsigned count, add; } probe;
typedef struct { probe work[WORK]; size_t count; } graph;
typedef struct { graph *captured; } stream;

static code copy(void *to, const void *from, size_t bytes, stream *s) {
    if (s->captured) return CAPTURING;
    memcpy(to, from, bytes);
    return 0;
}
code cuMemcpyHtoDAsync_v2(pointer to, const void *from, size_t bytes, handle s) {
    ENTER(1);
    return copy((void *)(uintptr_t)to, from, bytes, (stream *)s);
}
code cuMemcpyDtoHAsync_v2(void *to, pointer from, size_t bytes, handle s) {
    ENTER(1);
    return copy(to, (void *)(uintptr_t)from, bytes, (stream *)s);
}
code cuMemcpyDtoDAsync_v2(pointer to, pointer from, size_t bytes, handle s) {
    ENTER(1);
    return copy((void *)(uintptr_t)to, (void *)(uintptr_t)from, bytes, (stream *)s);
}
code cuMemsetD8Async(pointer to, unsigned char value, size_t count, handle s) {
    ENTER(1);
    if (((stream *)s)->captured) return CAPTURING;
    memset((void *)(uintptr_t)to, value, count);
    return 0;
}
code cuMemsetD32Async(pointer to, unsigned value, size_t count, handle s) {
    uint32_t *word = (uint32_t *)(uintptr_t)to;
    ENTER(1);
    if (((stream *)s)->captured) return CAPTURING;
    while (count--) *word++ = value;
    return 0;
}
code cuModuleLoadData(handle *out, const void *image) {
    ENTER(1);
    if (!image) return INVALID;
    live++;
    *out = (handle)0x33;
    return 0;
}
code cuModuleUnload(handle module) {
    ENTER(1);
    live--;
    return module == (handle)0x33 ? 0 : INVALID;
}
code cuModuleGetFunction(handle *out, handle module, const char *name) {
    ENTER(1);
    *out = (handle)0x44;
    return module != (handle)0x33 ? INVALID : strcmp(name, "probe_add") ? 500 : 0;
}
code cuFuncSetAttribute(handle function, int which, int value) {
    ENTER(1);
    return function == (handle)0x44 && which >= 8 && value >= 0 ? 0 : INVALID;
}
code cuFuncGetAttribute(int *out, int which, handle function) {
    ENTER(1);
    *out = which == 4 ? 32 : 0;
    return function == (handle)0x44 ? 0 : INVALID;
}
code cuOccupancyMaxActiveBlocksPerMultiprocessor(int *out, handle function, int threads, size_t shared) {
    ENTER(1);
    *out = 2048 / threads;
    return function == (handle)0x44 && shared < 1 << 20 ? 0 : INVALID;
}
code cuStreamCreateWithPriority(handle *out, unsigned flags, int priority) {
    ENTER(1);
    if (flags != 1) return INVALID;
    priority_given = priority;
    live++;
    *out = calloc(1, sizeof(stream));
    return 0;
}
code cuStreamDestroy_v2(handle s) {
    ENTER(1);
    free(s);
    live--;
    return 0;
}
code cuStreamGetCtx(handle s, handle *out) {
    ENTER(1);
    *out = s && s != (handle)0x99 ? (handle)0x77 : (handle)0x88;
    return 0;
}
code cuStreamQuery(handle s) {
    static int asked;
    ENTER(1);
    return s && asked++ % 2 ? 0 : NOT_READY;
}
code cuStreamSynchronize(handle s) {
    ENTER(1);
    return ((stream *)s)->captured ? CAPTURING : 0;
}
code cuStreamWaitEvent(handle s, handle event, unsigned flags) {
    ENTER(1);
    return s && event && !flags ? 0 : INVALID;
}
code cuStreamBeginCapture_v2(handle s, int mode) {
    ENTER(1);
    if (mode != 1 || ((stream *)s)->captured) return INVALID;
    ((stream *)s)->captured = (graph *)calloc(1, sizeof(graph));
    live++;
    return 0;
}
code cuStreamEndCapture(handle s, handle *out) {
    ENTER(1);
    *out = ((stream *)s)->captured;
    ((stream *)s)->captured = NULL;
    return *out ? 0 : 905;
}
code cuGraphGetNodes(handle g, handle *nodes, size_t *count) {
    ENTER(1);
    if (nodes) return INVALID;
    *count = ((graph *)g)->count;
    return 0;
}
code cuGraphInstantiateWithFlags(handle *out, handle g, uint64_t flags) {
    ENTER(1);
    if (flags) return INVALID;
    *out = malloc(sizeof(graph));
    memcpy(*out, g, sizeof(graph));
    live++;
    return 0;
}
static void run(const probe *work) {
    const uint32_t *x = (const uint32_t *)(uintptr_t)work->x;
    uint32_t *y = (uint32_t *)(uintptr_t)work->y;
    unsigned i;
    for (i = 0; i < work->count; i++) y[i] = x[i] + work->add;
}
code cuGraphLaunch(handle g, handle s) {
    size_t i;
    ENTER(1);
    if (!s) return INVALID;
    for (i = 0; i < ((graph *)g)->count; i++) run(&((graph *)g)->work[i]);
    return 0;
}
code cuGraphExecDestroy(handle g) {
    ENTER(1);
    free(g);
    live--;
    return 0;
}
code cuGraphDestroy(handle g) {
    ENTER(1);
    free(g);
    live--;
    return 0;
}
code cuEventCreate(handle *out, unsigned flags) {
    ENTER(1);
    if (flags && flags != 2) return INVALID;
    live++;
    *out = (handle)0x55;
    return 0;
}
code cuEventRecord(handle event, handle s) {
    ENTER(1);
    return event && s ? 0 : INVALID;
}
code cuEventQuery(handle event) {
    ENTER(1);
    return event ? 0 : INVALID;
}
code cuEventSynchronize(handle event) {
    ENTER(1);
    return event ? 0 : INVALID;
}
code cuEventElapsedTime(float *out, handle start, handle end) {
    ENTER(1);
    *out = 0.5f;
    return start && end ? 0 : INVALID;
}
code cuEventDestroy_v2(handle event) {
    ENTER(1);
    live--;
    return event ? 0 : INVALID;
}

static code launch(handle function, const unsigned shape[6], handle s, void **params) {
    probe work;
    graph *into = ((stream *)s)->captured;
    if (function != (handle)0x44) return INVALID;
    work.x = *(pointer *)params[0];
    work.y = *(pointer *)params[1];
    work.count = *(unsigned *)params[2];
    work.add = *(unsigned *)params[3];
    if ((uint64_t)shape[0] * shape[3] < work.count || shape[1] * shape[2] * shape[4] * shape[5] != 1) return INVALID;
    if (!into) {
        run(&work);
    } else if (into->count == WORK) {
        return INVALID;
    } else {
        into->work[into->count++] = work;
    }
    return 0;
}
code cuLaunchKernel(handle function, unsigned x, unsigned y, unsigned z, unsigned a, unsigned b, unsigned c,
                    unsigned shared, handle s, void **params, void **extra) {
    unsigned shape[6];
    ENTER(1);
    (void)shared;
    if (extra) return INVALID;
    shape[0] = x, shape[1] = y, shape[2] = z, shape[3] = a, shape[4] = b, shape[5] = c;
    return launch(function, shape, s, params);
}

typedef struct { unsigned id; char pad[4]; union { char pad[64]; int overlap; } value; } attribute;
typedef struct { unsigned shape[6], shared; handle s; attribute *attributes; unsigned count; } config;

code cuLaunchKernelEx(const config *c, handle function, void **params, void **extra) {
    ENTER(1);
    if (extra || c->count != 1 || c->attributes->id != 6 || c->attributes->value.overlap != 1) return INVALID;
    launches_ex++;
    return launch(function, c->shape, c->s, params);
}
