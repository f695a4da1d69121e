// Shows that device code is built, chosen and launched: y[i] = x[i] + add.
extern "C" __global__ void probe_add(const unsigned* x, unsigned* y, unsigned count, unsigned add) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) y[i] = x[i] + add;
}
