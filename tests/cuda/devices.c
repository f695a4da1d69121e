/* devices STATUS WORDS: asking for the first CUDA device comes to this, with these words in what it says; COUNT devices. */
#include "../capi/check.h"

int main(int argc, char **argv) {
    edgellm_device_info info;
    edgellm_status status;
    CHECK(argc == 4);
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
    return 0;
}
