/* CUDA's driver and runtime libraries for a machine without a GPU: they note what TVM's runtime asks of them.
   -DDRIVER makes libcuda.so.1, else libcudart.so.13. Nothing is computed. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef DRIVER

static FILE* notes(void) {
  static FILE* file;
  if (!file) file = fopen(getenv("DRIVER_NOTES"), "w");
  return file;
}

int cuModuleLoadData(void** module, const void* image) { /* fatbinary.h: magic, 2 bytes version, 2 header, 8 size */
  const unsigned char* bytes = image;
  uint16_t header;
  uint64_t size;
  memcpy(&header, bytes + 6, 2);
  memcpy(&size, bytes + 8, 8);
  FILE* file = fopen(getenv("DRIVER_IMAGE"), "wb");
  fwrite(image, 1, header + size, file);
  fclose(file);
  *module = (void*)image;
  return 0;
}

int cuModuleGetFunction(void** function, void* module, const char* name) {
  *function = strdup(name);
  return 0;
}

struct config { unsigned grid[3], block[3], shared; };

int cuLaunchKernelEx(const struct config* c, void* function, void** arguments, void** extra) {
  fprintf(notes(), "%s %u %u %u %u %u %u", (char*)function, c->grid[0], c->grid[1], c->grid[2], c->block[0], c->block[1],
          c->block[2]);
  fprintf(notes(), " %u %d\n", c->shared, *(int*)arguments[3]);
  fflush(notes());
  return 0;
}

int cuModuleUnload(void* module) { return 0; }
int cuFuncSetAttribute(void* function, int attribute, int value) { return 0; }
int cuDeviceGetName(char* name, int size, int device) { return snprintf(name, size, "none") < 0; }
int cuGetErrorName(int error, const char** text) { return *text = "error", 0; }
int cuGetErrorString(int error, const char** text) { return *text = "error", 0; }
int cuTensorMapEncodeTiled(void) { return 1; }

#else

int cudaMalloc(void** memory, size_t size) { return !(*memory = aligned_alloc(256, (size + 255) / 256 * 256)); }
int cudaMallocHost(void** memory, size_t size) { return cudaMalloc(memory, size); }
int cudaFree(void* memory) { return free(memory), 0; }
int cudaFreeHost(void* memory) { return free(memory), 0; }
int cudaMemcpyAsync(void* to, const void* from, size_t size, int kind, void* stream) { return memcpy(to, from, size), 0; }
int cudaGetDevice(int* device) { return *device = 0; }
int cudaGetDeviceCount(int* count) { return *count = 1, 0; }
int cudaDeviceGetAttribute(int* value, int attribute, int device) { return *value = 1, 0; }
const char* cudaGetErrorName(int error) { return "error"; }
const char* cudaGetErrorString(int error) { return "error"; }
#define OK(name) int name(void) { return 0; }
OK(cudaEventCreate) OK(cudaEventDestroy) OK(cudaEventElapsedTime) OK(cudaEventRecord) OK(cudaEventSynchronize)
OK(cudaGetDeviceProperties) OK(cudaGetLastError) OK(cudaGraphDestroy) OK(cudaGraphExecDestroy) OK(cudaGraphInstantiate)
OK(cudaGraphLaunch) OK(cudaMemGetInfo) OK(cudaMemcpyPeerAsync) OK(cudaPeekAtLastError) OK(cudaSetDevice)
OK(cudaStreamBeginCapture) OK(cudaStreamCreate) OK(cudaStreamCreateWithFlags) OK(cudaStreamDestroy)
OK(cudaStreamEndCapture) OK(cudaStreamSynchronize) OK(cudaStreamWaitEvent)

#endif
