// Nearest points of two clouds, both ways, by all their distances. Called by chamfer.py.
//
// A cloud is three planes of coordinates, each filled up by infinities to a multiple of LANES: those are nearest to
// nothing, since neither an infinite distance nor one that is no number is less than another.
//
// Only IEEE operations without contraction: the same numbers on every CPU, however wide.

#include <algorithm>
#include <cstdint>
#include <limits>

// Where the linker can choose among versions when the library is loaded: 2.3 times as fast by AVX-512.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define WIDEST __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define WIDEST
#endif

namespace {

constexpr int ROWS = 4, LANES = 16;
constexpr float NOT_YET = std::numeric_limits<float>::infinity();

}  // namespace

extern "C" {

// Sets squared distances: of each of x's num_x points to y, and of each of y's num_y points to x.
WIDEST void nearest(
    const float* x, int64_t num_x, const float* y, int64_t num_y, float* of_x, float* of_y
) {
    std::fill(of_y, of_y + num_y, NOT_YET);
    for (int64_t i = 0; i < num_x; i += ROWS) {
        float least[ROWS][LANES];
        std::fill(&least[0][0], &least[0][0] + ROWS * LANES, NOT_YET);
        for (int64_t j = 0; j < num_y; j += LANES) {
            for (int k = 0; k < LANES; ++k) {
                const float *at = y + j + k;
                float own = of_y[j + k];
                for (int row = 0; row < ROWS; ++row) {
                    const float *from = x + i + row;
                    float dx = from[0] - at[0], dy = from[num_x] - at[num_y], dz = from[2 * num_x] - at[2 * num_y];
                    float squared = dx * dx + dy * dy + dz * dz;
                    least[row][k] = squared < least[row][k] ? squared : least[row][k];
                    own = squared < own ? squared : own;
                }
                of_y[j + k] = own;
            }
        }
        for (int row = 0; row < ROWS; ++row) of_x[i + row] = *std::min_element(least[row], least[row] + LANES);
    }
}
}
