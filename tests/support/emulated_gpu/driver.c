// As much of NVIDIA's driver as the GPU benchmark calls, over the emulator of `tests/support/cuda_emulator`.
// A module's image is text: the emulator's library, a mode, then "kernel arguments" in the order of
// the library's launches. Modes: "run"; "skip" launches nothing; "crash" loses the GPU.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { LAUNCH_FAILED = 700, MAX_BUFFERS = 4096, MAX_NODES = 4096, MAX_ARGUMENTS = 8 };
typedef unsigned long long address;

static struct { char* begin; size_t size; } buffers[MAX_BUFFERS];
static int buffer_count, lost;

struct Function { char name[64]; int arguments, number; };
struct Module { void* library; char mode[8]; int count; struct Function functions[4]; };
struct Kernel { struct Module* module; struct Function* function; };
struct Node { struct Kernel* kernel; void* arguments[MAX_ARGUMENTS]; };
struct Graph { int count; struct Node nodes[MAX_NODES]; };
static struct Graph* capturing;

static int status(void) { return lost ? LAUNCH_FAILED : 0; }

int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int* count) { *count = 1; return 0; }
int cuDeviceGet(int* device, int ordinal) { *device = 0; return 0; }
int cuDriverGetVersion(int* version) { *version = 13000; return 0; }
int cuDeviceTotalMem_v2(size_t* bytes, int device) { *bytes = 1ull << 34; return 0; }
int cuDeviceGetName(char* name, int length, int device) {
  snprintf(name, length, "NVIDIA Imaginary");
  return 0;
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  const char* capability = getenv("EMULATED_CAPABILITY");
  switch (attribute) {
    case 75: *value = capability[0] - '0'; return 0;
    case 76: *value = capability[1] - '0'; return 0;
    case 16: *value = 2; return 0;      // SMs
    case 38: *value = 4096; return 0;   // bytes of L2
  }
  return 1;
}
int cuDevicePrimaryCtxRetain(void** context, int device) { *context = &lost; return 0; }
int cuCtxSetCurrent(void* context) { return context == &lost ? 0 : 201; }
int cuCtxSynchronize(void) { return status(); }
int cuGetErrorName(int error, const char** name) {
  *name = error == LAUNCH_FAILED ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR_INVALID_VALUE";
  return 0;
}

int cuMemAlloc_v2(address* result, size_t bytes) {
  if (lost) return LAUNCH_FAILED;
  if (!bytes || buffer_count == MAX_BUFFERS) return 2;
  char* begin = aligned_alloc(256, (bytes + 255) / 256 * 256);
  memset(begin, 0xFF, bytes);
  buffers[buffer_count].begin = begin;
  buffers[buffer_count++].size = bytes;
  *result = (address)begin;
  return 0;
}
int cuMemFree_v2(address at) {
  for (int i = 0; i < buffer_count; i++)
    if (buffers[i].begin == (char*)at) {
      free(buffers[i].begin);
      buffers[i] = buffers[--buffer_count];
      return status();
    }
  return 1;
}
static int inside(address at, size_t bytes) {
  for (int i = 0; i < buffer_count; i++)
    if ((char*)at >= buffers[i].begin && (char*)at + bytes <= buffers[i].begin + buffers[i].size)
      return 1;
  return 0;
}
int cuMemcpyHtoD_v2(address to, const void* from, size_t bytes) {
  if (!inside(to, bytes)) return 1;
  memcpy((void*)to, from, bytes);
  return status();
}
int cuMemcpyDtoH_v2(void* to, address from, size_t bytes) {
  if (!inside(from, bytes)) return 1;
  memcpy(to, (void*)from, bytes);
  return status();
}
int cuMemcpyDtoDAsync_v2(address to, address from, size_t bytes, void* stream) {
  if (!inside(to, bytes) || !inside(from, bytes)) return 1;
  memcpy((void*)to, (void*)from, bytes);
  return status();
}
int cuMemsetD8_v2(address to, unsigned char value, size_t bytes) {
  if (!inside(to, bytes)) return 1;
  memset((void*)to, value, bytes);
  return status();
}

int cuModuleLoadData(void** result, const void* image) {
  struct Module* module = calloc(1, sizeof *module);
  char path[4096], name[64];
  int arguments, read;
  const char* text = image;
  if (sscanf(text, "%4095s %7s%n", path, module->mode, &read) != 2) return 200;
  module->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!module->library) return 200;
  for (text += read; sscanf(text, "%63s %d%n", name, &arguments, &read) == 2; text += read) {
    struct Function* function = &module->functions[module->count];
    strcpy(function->name, name);
    function->arguments = arguments;
    function->number = module->count++;
  }
  *result = module;
  return status();
}
int cuModuleUnload(void* module) { free(module); return status(); }
int cuModuleGetFunction(void** result, void* handle, const char* name) {
  struct Module* module = handle;
  for (int i = 0; i < module->count; i++)
    if (!strcmp(module->functions[i].name, name)) {
      struct Kernel* kernel = malloc(sizeof *kernel);
      *kernel = (struct Kernel){module, &module->functions[i]};
      *result = kernel;
      return status();
    }
  return 500;
}
int cuFuncSetAttribute(void* function, int attribute, int value) {
  return attribute == 8 && value <= 227 * 1024 ? status() : 1;
}

static int run(const struct Node* node) {
  struct Module* module = node->kernel->module;
  if (!strcmp(module->mode, "crash")) lost = 1;
  if (lost || !strcmp(module->mode, "skip")) return 0;  // reported by what comes next
  static const char* names[MAX_BUFFERS];
  static void* begins[MAX_BUFFERS];
  static long sizes[MAX_BUFFERS];
  for (int i = 0; i < buffer_count; i++) {
    names[i] = "memory";
    begins[i] = buffers[i].begin;
    sizes[i] = buffers[i].size;
  }
  void (*set)(int, const char**, void**, long*) = dlsym(module->library, "set_buffers");
  char symbol[16];
  snprintf(symbol, sizeof symbol, "run_%d", node->kernel->function->number);
  const char* (*launch)(void**) = dlsym(module->library, symbol);
  set(buffer_count, names, begins, sizes);
  const char* error = launch((void**)node->arguments);
  if (error) fprintf(stderr, "emulator: %s\n", error);
  lost |= error != NULL;
  return 0;
}
int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void* stream, void** parameters, void** extra) {
  struct Node node = {function};
  if (lost) return LAUNCH_FAILED;
  if (!gx || !gy || !gz || !bx || !by || !bz || extra) return 1;
  for (int i = 0; i < node.kernel->function->arguments; i++)
    node.arguments[i] = *(void**)parameters[i];
  if (!capturing) return run(&node);
  if (capturing->count == MAX_NODES) return 900;
  capturing->nodes[capturing->count++] = node;
  return 0;
}

int cuStreamCreate(void** stream, unsigned flags) { *stream = malloc(1); return 0; }
int cuStreamSynchronize(void* stream) { return status(); }
int cuStreamBeginCapture_v2(void* stream, int mode) {
  if (!stream || capturing || getenv("EMULATED_NO_CAPTURE")) return 900;
  capturing = calloc(1, sizeof *capturing);
  return 0;
}
int cuStreamEndCapture(void* stream, void** graph) {
  if (!capturing) return 901;
  *graph = capturing;
  capturing = NULL;
  return 0;
}
int cuGraphInstantiateWithFlags(void** result, void* graph, unsigned long long flags) {
  *result = malloc(sizeof(struct Graph));
  memcpy(*result, graph, sizeof(struct Graph));
  return 0;
}
int cuGraphLaunch(void* handle, void* stream) {
  const struct Graph* graph = handle;
  for (int i = 0; i < graph->count; i++) run(&graph->nodes[i]);
  return 0;
}
int cuGraphDestroy(void* graph) { free(graph); return 0; }
int cuGraphExecDestroy(void* graph) { free(graph); return 0; }

int cuEventCreate(void** event, unsigned flags) { *event = calloc(1, sizeof(struct timespec)); return 0; }
int cuEventRecord(void* event, void* stream) {
  clock_gettime(CLOCK_MONOTONIC, event);
  return status();
}
int cuEventSynchronize(void* event) { return status(); }
int cuEventElapsedTime(float* ms, const struct timespec* start, const struct timespec* end) {
  *ms = 1e3 * (end->tv_sec - start->tv_sec) + 1e-6 * (end->tv_nsec - start->tv_nsec);
  return status();
}
