// Replays an artifact's test data by ONNX Runtime's C API. ORT is a folder with its headers and its library:
//
//   gcc -O2 -o replay examples/replay.c -I ORT/include ORT/lib/libonnxruntime.so -lm
//   LD_LIBRARY_PATH=ORT/lib ./replay artifacts/stunet-s
//
// Prints the largest error relative to the standard deviation of the logits. The exit code is 1 if the manifest allows
// less.
#include <math.h>
#include <onnxruntime_c_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define AXES 8

typedef struct {
  size_t rank, count;
  int64_t dims[AXES];
  float *data;
} Tensor;

static const OrtApi *ort;

static void fail(const char *what, const char *where) {
  fprintf(stderr, "%s: %s\n", where, what);
  exit(2);
}

static void check(OrtStatus *status) {
  if (status) fail(ort->GetErrorMessage(status), "onnxruntime");
}

// The bytes of a file, with a 0 behind them.
static char *bytes(const char *path, size_t *size) {
  FILE *file = fopen(path, "rb");
  if (!file || fseek(file, 0, SEEK_END)) fail("can't be read", path);
  *size = (size_t)ftell(file);
  rewind(file);
  char *read = malloc(*size + 1);
  if (!read || fread(read, 1, *size, file) != *size) fail("can't be read", path);
  fclose(file);
  read[*size] = 0;
  return read;
}

static uint64_t varint(const unsigned char **place, const unsigned char *end, const char *path) {
  uint64_t value = 0;
  for (int shift = 0; shift < 64 && *place < end; shift += 7) {
    unsigned char byte = *(*place)++;
    value |= (uint64_t)(byte & 127) << shift;
    if (byte < 128) return value;
  }
  fail("is no tensor", path);
  return 0;
}

static void add(Tensor *tensor, uint64_t size, const char *path) {
  if (tensor->rank == AXES) fail("has too many axes", path);
  tensor->dims[tensor->rank++] = (int64_t)size;
}

// A .pb file is a protobuf message of ONNX, TensorProto: 1 dims, 2 data_type (1: float32), 9 raw_data.
static Tensor tensor(const char *path) {
  size_t size;
  const unsigned char *place = (unsigned char *)bytes(path, &size), *end = place + size;
  Tensor read = {0};
  while (place < end) {
    uint64_t key = varint(&place, end, path), value = varint(&place, end, path);
    if (key == (1 << 3)) add(&read, value, path);
    if (key == (2 << 3) && value != 1) fail("isn't float32", path);
    if ((key & 7) == 0) continue;
    if ((key & 7) != 2 || value > (size_t)(end - place)) fail("is no tensor", path);
    const unsigned char *after = place + value;
    if (key >> 3 == 1)
      while (place < after) add(&read, varint(&place, after, path), path);
    if (key >> 3 == 9) {
      read.count = value / sizeof(float);
      read.data = malloc(value + 1);  // a copy, since floats start at a multiple of four bytes
      if (!read.data) fail("takes too much memory", path);
      memcpy(read.data, place, value);
    }
    place = after;
  }
  if (!read.data) fail("holds no values", path);
  return read;
}

// parity.tolerance.max_rel_error of the manifest.
static double tolerance(const char *path) {
  size_t size;
  const char *found = strstr(bytes(path, &size), "\"tolerance\"");
  if (found) found = strstr(found, "\"max_rel_error\":");
  if (!found) fail("names no tolerance", path);
  return strtod(found + strlen("\"max_rel_error\":"), NULL);
}

static const char *in(const char *artifact, const char *name) {
  char *path = malloc(strlen(artifact) + strlen(name) + 2);
  sprintf(path, "%s/%s", artifact, name);
  return path;
}

int main(int count, char **arguments) {
  if (count != 2) fail("give an artifact's folder", arguments[0]);
  const char *artifact = arguments[1];
  ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  if (!ort) fail("the library is older than the header", "onnxruntime");

  OrtEnv *env;
  OrtSessionOptions *options;
  OrtSession *session;
  OrtAllocator *allocator;
  OrtMemoryInfo *memory;
  check(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "replay", &env));
  check(ort->CreateSessionOptions(&options));
  // Given the path, ONNX Runtime finds model.onnx.data beside the model by itself.
  check(ort->CreateSession(env, in(artifact, "model.onnx"), options, &session));
  check(ort->GetAllocatorWithDefaultOptions(&allocator));
  check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
  char *input, *output;
  check(ort->SessionGetInputName(session, 0, allocator, &input));
  check(ort->SessionGetOutputName(session, 0, allocator, &output));

  Tensor x = tensor(in(artifact, "test_data_set_0/input_0.pb"));
  Tensor expected = tensor(in(artifact, "test_data_set_0/output_0.pb"));
  OrtValue *value, *logits = NULL;
  check(ort->CreateTensorWithDataAsOrtValue(memory, x.data, x.count * sizeof(float), x.dims, x.rank,
                                            ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &value));
  check(ort->Run(session, NULL, (const char *const *)&input, (const OrtValue *const *)&value, 1,
                 (const char *const *)&output, 1, &logits));
  OrtTensorTypeAndShapeInfo *shape;
  size_t found_count;
  float *found;
  check(ort->GetTensorTypeAndShape(logits, &shape));
  check(ort->GetTensorShapeElementCount(shape, &found_count));
  check(ort->GetTensorMutableData(logits, (void **)&found));
  if (found_count != expected.count) fail("the logits have another shape", artifact);

  double largest = 0, sum = 0, squares = 0;
  for (size_t i = 0; i < expected.count; i++) {
    double wanted = expected.data[i], difference = fabs(found[i] - wanted);
    largest = difference <= largest ? largest : difference;  // NaN stays
    sum += wanted;
    squares += wanted * wanted;
  }
  double mean = sum / expected.count, std = sqrt(squares / expected.count - mean * mean);
  double error = largest / (std > 0 ? std : 1);
  printf("%.1e\n", error);
  return error <= tolerance(in(artifact, "manifest.json")) ? 0 : 1;
}
