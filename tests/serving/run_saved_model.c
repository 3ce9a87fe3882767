/* Runs a SavedModel once through TensorFlow's C API, as a program of another language
 * would, and writes the raw bytes of its outputs.
 *
 *   run_saved_model FOLDER (in TENSOR DTYPE DIMS FILE)... (out TENSOR FILE)...
 *
 * TENSOR is a name of the signature, as serving_default_seed:0; DTYPE is TensorFlow's
 * number of the type, DIMS as 2x8x8x1.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tensorflow/c/c_api.h>

enum { MAX_TENSORS = 16, MAX_DIMS = 8 };

static void fail(const char *what, const char *detail) {
  fprintf(stderr, "%s: %s\n", what, detail);
  exit(1);
}

static void check(const TF_Status *status, const char *what) {
  if (TF_GetCode(status) != TF_OK) fail(what, TF_Message(status));
}

static TF_Output find(TF_Graph *graph, char *name) {
  char *colon = strrchr(name, ':');
  if (!colon) fail("not a tensor's name", name);
  *colon = '\0';
  TF_Output output = {TF_GraphOperationByName(graph, name), atoi(colon + 1)};
  if (!output.oper) fail("no such operation", name);
  return output;
}

static TF_Tensor *read_tensor(const char *dtype, char *sizes, const char *path) {
  int64_t dims[MAX_DIMS];
  int num_dims = 0;
  size_t count = 1;
  for (char *size = strtok(sizes, "x"); size; size = strtok(NULL, "x")) {
    dims[num_dims] = atoll(size);
    count *= dims[num_dims++];
  }
  size_t bytes = count * TF_DataTypeSize(atoi(dtype));
  TF_Tensor *tensor = TF_AllocateTensor(atoi(dtype), dims, num_dims, bytes);
  FILE *file = fopen(path, "rb");
  if (!file || fread(TF_TensorData(tensor), 1, bytes, file) != bytes)
    fail("cannot read", path);
  fclose(file);
  return tensor;
}

int main(int argc, char **argv) {
  TF_Status *status = TF_NewStatus();
  TF_Graph *graph = TF_NewGraph();
  TF_SessionOptions *options = TF_NewSessionOptions();
  const char *tags[] = {"serve"};
  TF_Session *session = TF_LoadSessionFromSavedModel(options, NULL, argv[1], tags, 1,
                                                     graph, NULL, status);
  check(status, "loading");

  TF_Output inputs[MAX_TENSORS], outputs[MAX_TENSORS];
  TF_Tensor *fed[MAX_TENSORS], *fetched[MAX_TENSORS] = {NULL};
  const char *files[MAX_TENSORS];
  int num_inputs = 0, num_outputs = 0;
  for (int i = 2; i < argc;) {
    if (!strcmp(argv[i], "in")) {
      inputs[num_inputs] = find(graph, argv[i + 1]);
      fed[num_inputs++] = read_tensor(argv[i + 2], argv[i + 3], argv[i + 4]);
      i += 5;
    } else {
      outputs[num_outputs] = find(graph, argv[i + 1]);
      files[num_outputs++] = argv[i + 2];
      i += 3;
    }
  }
  TF_SessionRun(session, NULL, inputs, fed, num_inputs, outputs, fetched, num_outputs,
                NULL, 0, NULL, status);
  check(status, "running");
  for (int i = 0; i < num_outputs; i++) {
    FILE *file = fopen(files[i], "wb");
    size_t bytes = TF_TensorByteSize(fetched[i]);
    if (!file || fwrite(TF_TensorData(fetched[i]), 1, bytes, file) != bytes)
      fail("cannot write", files[i]);
    fclose(file);
  }
  TF_CloseSession(session, status);
  check(status, "closing");
  return 0;
}
