/*
 * devices STATUS WORDS COUNT MODEL: asking for the first CUDA device comes to this, with these words in what it says; COUNT
 * devices. A stream or a priority that the device does not have refuses to load the model.
 */
#include "../capi/check.h"

static void streams(const char *path) {
    edgellm_load_params params;
    edgellm_model *model = NULL;
    edgellm_load_params_init(&params);
    params.path = path;
    params.n_threads = 1;
    params.cuda_priority = -6;
    params.device = 0;
    REFUSED(EDGELLM_E_ARG, "-5 (first) to 0", edgellm_load(&params, &model));
    params.device = EDGELLM_DEVICE_CPU;
    REFUSED(EDGELLM_E_ARG, "on the CPU", edgellm_load(&params, &model));
    params.device = 0;
    params.cuda_stream = (void *)0x99; /* Of another context, says the fake. */
    REFUSED(EDGELLM_E_ARG, "cuda_priority beside cuda_stream", edgellm_load(&params, &model));
    params.cuda_priority = 0;
    REFUSED(EDGELLM_E_ARG, "primary context of device 0", edgellm_load(&params, &model));
    params.device = EDGELLM_DEVICE_CPU;
    REFUSED(EDGELLM_E_ARG, "on the CPU", edgellm_load(&params, &model));
    params.cuda_stream = NULL;
    params.reserved0 = 1;
    REFUSED(EDGELLM_E_ARG, "reserved0", edgellm_load(&params, &model));
    CHECK(model == NULL);
}

int main(int argc, char **argv) {
    edgellm_device_info info;
    edgellm_status status;
    CHECK(argc == 5);
    CHECK(edgellm_device_count() == (uint32_t)atoi(argv[3]));
    memset(&info, 0, sizeof info);
    info.struct_size = sizeof info;
    status = edgellm_device_get(1, &info);
    CHECK(strcmp(edgellm_status_name(status), argv[1]) == 0);
    CHECK(strstr(edgellm_last_error(), argv[2]) != NULL);
    if (status == EDGELLM_OK) CHECK(info.device == 0 && info.usable == (argv[2][0] == '\0') && info.cores == 4);
    info.device = 0;
    STATUS(EDGELLM_OK, edgellm_device_get(0, &info)); /* The CPU is there in any case. */
    CHECK(info.device == EDGELLM_DEVICE_CPU && info.usable == 1);
    if (status == EDGELLM_OK) streams(argv[4]);
    return 0;
}
