/* A libnvidia-ml.so.1 for tests: the functions that function/gpu.py calls, with NVML's own signatures and return codes.
 *
 * Two GPUs of a made-up model; the second has no temperature sensor. Environment variables, read at each call, change it:
 *   FAKE_NVML_INIT=CODE      nvmlInit returns this code
 *   FAKE_NVML_COUNT=N        how many GPUs are listed (default 2)
 *   FAKE_NVML_LOST=INDEX     that GPU has fallen off the bus
 *   FAKE_NVML_MUTE=CODE      memory, utilization and temperature return this code on every GPU
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15 };

typedef struct { int index; } device;
typedef struct { unsigned long long total, free, used; } memory;
typedef struct { unsigned int gpu, memory; } utilization;

static device devices[] = {{0}, {1}, {2}, {3}};
static int opened, inits;

static int setting(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text && *text ? atoi(text) : otherwise;
}

static int check(const device *d) {
    if (!opened) return UNINITIALIZED;
    return d->index == setting("FAKE_NVML_LOST", -1) ? GPU_IS_LOST : SUCCESS;
}

static int copy(char *out, unsigned int size, const char *text) {
    if (strlen(text) >= size) return INSUFFICIENT_SIZE;
    strcpy(out, text);
    return SUCCESS;
}

/* How often NVML was opened, and whether it is open now: not part of NVML, for the tests alone. */
int fake_nvml_inits(void) { return inits; }
int fake_nvml_opened(void) { return opened; }

int nvmlInitWithFlags(unsigned int flags) {
    int code = setting("FAKE_NVML_INIT", SUCCESS);
    (void)flags;
    if (code == SUCCESS) opened++, inits++;
    return code;
}

int nvmlShutdown(void) {
    if (!opened) return UNINITIALIZED;
    opened--;
    return SUCCESS;
}

int nvmlSystemGetDriverVersion(char *out, unsigned int size) {
    return opened ? copy(out, size, "570.86.15") : UNINITIALIZED;
}

int nvmlDeviceGetCount_v2(unsigned int *count) {
    *count = (unsigned int)setting("FAKE_NVML_COUNT", 2);
    return opened ? SUCCESS : UNINITIALIZED;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, device **out) {
    if (index >= (unsigned int)setting("FAKE_NVML_COUNT", 2)) return INVALID_ARGUMENT;
    *out = &devices[index];
    return opened ? SUCCESS : UNINITIALIZED;
}

int nvmlDeviceGetUUID(device *d, char *out, unsigned int size) {
    char uuid[64];
    int code = check(d);
    snprintf(uuid, sizeof uuid, "GPU-%d0000000-aaaa-bbbb-cccc-dddddddddddd", d->index + 1);
    return code ? code : copy(out, size, uuid);
}

int nvmlDeviceGetName(device *d, char *out, unsigned int size) {
    int code = check(d);
    return code ? code : copy(out, size, "Fake GPU");
}

int nvmlDeviceGetMemoryInfo(device *d, memory *out) {
    int code = check(d);
    if (!code) code = setting("FAKE_NVML_MUTE", SUCCESS);
    if (!code) out->total = 8ULL << 30, out->used = (1ULL + (unsigned)d->index) << 30, out->free = out->total - out->used;
    return code;
}

int nvmlDeviceGetUtilizationRates(device *d, utilization *out) {
    int code = check(d);
    if (!code) code = setting("FAKE_NVML_MUTE", SUCCESS);
    if (!code) out->gpu = 25, out->memory = 10;
    return code;
}

int nvmlDeviceGetTemperature(device *d, unsigned int sensor, unsigned int *out) {
    int code = check(d);
    (void)sensor;
    if (!code) code = setting("FAKE_NVML_MUTE", d->index == 1 ? NOT_SUPPORTED : SUCCESS);
    if (!code) *out = 41;
    return code;
}
