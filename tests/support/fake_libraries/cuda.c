// NVIDIA's driver and CUDA runtime, made up: memory is the CPU's, kernels do nothing, and the log says
// what was asked for, one line each. Compiled twice: with RUNTIME as libcudart, else as libcuda.
// What a real one forbids fails: allocating, or waiting for the stream, while a graph is captured.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern void fake_log(const char *format, ...);
extern void *fake_capturing;
enum { OUT_OF_MEMORY = 2, INVALID_CONTEXT = 201, UNSUPPORTED_IN_CAPTURE = 900 };

#ifndef RUNTIME

typedef struct {
  unsigned grid[3], block[3], shared;
  void *stream, *attributes;
  unsigned count;
} LaunchConfig;

static char log_text[1 << 20];
static size_t log_length;
static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;
static float clock_ms;
static __thread int contexts;
void *fake_capturing;

void fake_log(const char *format, ...) {
  pthread_mutex_lock(&log_lock);
  va_list arguments;
  va_start(arguments, format);
  log_length += vsnprintf(log_text + log_length, sizeof log_text - log_length, format, arguments);
  va_end(arguments);
  log_text[log_length++] = '\n', log_text[log_length] = 0;
  pthread_mutex_unlock(&log_lock);
}

const char *fake_take_log(void) {
  log_length = 0;
  return log_text;
}

int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { return *version = 13000, 0; }
int cuDeviceGetCount(int *count) { return *count = 1, 0; }
int cuDeviceGet(int *device, int index) { return *device = index, 0; }
int cuDeviceGetName(char *name, int length, int device) { return snprintf(name, length, "Imaginary") < 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { return *value = attribute == 75 ? 8 : 0, 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { return *bytes = (size_t)40 << 30, 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { return *context = (void *)1, 0; }
int cuCtxPushCurrent_v2(void *context) { return contexts++, 0; }
int cuCtxPopCurrent_v2(void **context) { return --contexts < 0 ? INVALID_CONTEXT : 0; }
int cuEventCreate(float **event, unsigned flags) {
  *event = malloc(sizeof(float));
  return contexts ? 0 : INVALID_CONTEXT;
}
int cuEventRecord(float *event, void *stream) { return *event = ++clock_ms, 0; }
int cuEventDestroy_v2(float *event) { return free(event), 0; }
int cuEventSynchronize(float *event) { return 0; }
int cuEventElapsedTime(float *ms, float *start, float *end) { return *ms = *end - *start, 0; }
int cuStreamWaitEvent(void *stream, float *event, unsigned flags) { return fake_log("wait %p", stream), 0; }
int cuStreamSynchronize(void *stream) { return fake_log("synchronize %p", stream), 0; }
int cuMemcpyDtoDAsync_v2(void *to, void *from, size_t bytes, void *stream) { return memcpy(to, from, bytes), 0; }
int cuModuleLoadData(void **module, const char *data) {
  *module = malloc(1);
  return memcmp(data, "\x7f" "ELF", 4) ? 1 : 0;  // machine code, not source
}
int cuModuleUnload(void *module) { return free(module), 0; }
int cuModuleGetFunction(char **function, void *module, const char *name) { return *function = strdup(name), 0; }
int cuFuncSetAttribute(void *function, int attribute, int value) {
  return attribute == 8 && value <= 163 << 10 ? 0 : 1;
}
int cuLaunchKernelEx(const LaunchConfig *config, const char *function, void **arguments, void **extra) {
  int captured = fake_capturing && config->stream == fake_capturing;
  return fake_log("%s %s %p", captured ? "capture" : "launch", function, config->stream), 0;
}
int cuGetErrorName(int error, const char **text) { return *text = "error", 0; }
int cuGetErrorString(int error, const char **text) { return *text = "error", 0; }
int cuTensorMapEncodeTiled(void) { return 1; }

#else

static __thread int last;

static int fail(int error) { return last = error; }

int cudaDeviceGetAttribute(int *value, int attribute, int device) { return *value = 1, 0; }
int cudaEventCreate(void **event) { return 1; }
int cudaEventDestroy(void *event) { return 1; }
int cudaEventElapsedTime(float *ms, void *start, void *end) { return 1; }
int cudaEventRecord(void *event, void *stream) { return 1; }
int cudaEventSynchronize(void *event) { return 1; }
int cudaFree(void *memory) { return free(memory), fake_capturing ? fail(UNSUPPORTED_IN_CAPTURE) : 0; }
int cudaFreeHost(void *memory) { return free(memory), 0; }
int cudaGetDevice(int *device) { return *device = 0; }
int cudaGetDeviceCount(int *count) { return *count = 1, 0; }
int cudaGetDeviceProperties(void *properties, int device) { return 1; }
const char *cudaGetErrorName(int error) { return "error"; }
const char *cudaGetErrorString(int error) { return "what is forbidden here"; }
int cudaGetLastError(void) { int error = last; return last = 0, error; }
int cudaPeekAtLastError(void) { return last; }
int cudaGraphDestroy(void *graph) { return 0; }
int cudaGraphExecDestroy(void *exec) { return 0; }
int cudaGraphInstantiate(void **exec, void *graph, unsigned long long flags) { return *exec = graph, 0; }
int cudaGraphLaunch(void *exec, void *stream) { return fake_log("graph %p", stream), 0; }
int cudaMalloc(void **memory, size_t bytes) {
  if (fake_capturing) return fail(UNSUPPORTED_IN_CAPTURE);
  *memory = aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (*memory) memset(*memory, 0, bytes);
  return *memory ? 0 : fail(OUT_OF_MEMORY);
}
int cudaMallocHost(void **memory, size_t bytes) { return *memory = malloc(bytes), 0; }
int cudaMemGetInfo(size_t *free_bytes, size_t *bytes) { return *free_bytes = *bytes = (size_t)40 << 30, 0; }
int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) {
  if (fake_capturing) return fail(UNSUPPORTED_IN_CAPTURE);
  return fake_log("copy %p", stream), memcpy(to, from, bytes), 0;
}
int cudaMemcpyPeerAsync(void *to, int a, const void *from, int b, size_t bytes, void *stream) { return 1; }
int cudaSetDevice(int device) { return device; }
int cudaStreamBeginCapture(void *stream, int mode) {
  fake_capturing = stream;
  usleep(20000);  // so that other threads come in between, if they can
  return 0;
}
int cudaStreamCreate(void **stream) { return *stream = malloc(1), 0; }
int cudaStreamCreateWithFlags(void **stream, unsigned flags) { return cudaStreamCreate(stream); }
int cudaStreamDestroy(void *stream) { return free(stream), 0; }
int cudaStreamEndCapture(void *stream, void **graph) { return fake_capturing = NULL, *graph = (void *)1, 0; }
int cudaStreamSynchronize(void *stream) { return fake_capturing ? fail(UNSUPPORTED_IN_CAPTURE) : 0; }
int cudaStreamWaitEvent(void *stream, void *event, unsigned flags) { return 1; }

#endif
