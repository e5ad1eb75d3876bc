/* As much of the CUDA driver as the inspector calls, over plain memory. STAND_IN says what goes wrong. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static int plays(const char *fault) { const char *word = getenv("STAND_IN"); return word && strcmp(word, fault) == 0; }
static int started, current;

int cuInit(unsigned flags) { if (flags) return 1; if (plays("mismatch")) return 803; started = 1; return 0; }
int cuDriverGetVersion(int *version) { *version = plays("old") ? 11040 : 12080; return started ? 0 : 3; }
int cuDeviceGetCount(int *count) { *count = plays("none") ? 0 : plays("two") ? 2 : 1; return started ? 0 : 3; }
int cuDeviceGet(int *device, int ordinal) { *device = 40 + ordinal; return 0; }
int cuDeviceGetName(char *name, int size, int device) {
    if (device < 40) return 101;
    strncpy(name, plays("rude") ? "RTX\x1b[2J 4090" : "NVIDIA GeForce RTX 4090", size);
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)24564 << 20; return device < 40 ? 101 : 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)(intptr_t)device; return plays("full") ? 2 : 0; }
int cuCtxSetCurrent(void *context) { current = (int)(intptr_t)context; return 0; }
int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) { *free_bytes = (size_t)24000 << 20; *total = (size_t)24564 << 20; return current ? 0 : 201; }
int cuMemAlloc_v2(uint64_t *place, size_t size) { *place = (uint64_t)(uintptr_t)malloc(size); return current ? 0 : 201; }
int cuMemsetD8_v2(uint64_t place, unsigned char value, size_t count) { memset((void *)(uintptr_t)place, value, count); return 0; }
int cuCtxSynchronize(void) { while (plays("hangs")) {} return 0; }
int cuMemcpyDtoH_v2(void *to, uint64_t place, size_t count) {
    memcpy(to, (void *)(uintptr_t)place, count);
    if (plays("forgets")) ((char *)to)[count - 1] ^= 1;
    return 0;
}
int cuMemFree_v2(uint64_t place) { free((void *)(uintptr_t)place); return 0; }
int cuGetErrorString(int error, const char **words) {
    *words = error == 803 ? "system has unsupported display driver / cuda driver combination" : NULL;
    return *words ? 0 : 1;
}
