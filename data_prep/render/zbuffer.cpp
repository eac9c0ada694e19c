// One view of a triangle mesh by a z-buffer: visibility, attributes, textures, layers and 8-bit planes in one call.
//
// Its reference is raycast.py, sample by sample: the same places, shading, layers and choice of the pixels that
// are refined. Called by zbuffer.py, which has checked every index and shape.
//
// Geometry is homogeneous (Olano and Greer 1997, "Triangle Scan Conversion using 2D Homogeneous Coordinates"): the
// edge opposite to corner i is the plane through the eye with the normal n_i = v_j x v_k (camera's frame), and a ray
// d = (x, y, 1) passes the triangle where all n_i . d have the sign of det = v_0 . (v_1 x v_2). There
// (n_i . d) / sum are its perspective-correct weights and det / sum is its depth, so that nothing has to be
// clipped. Two triangles get the edge that they share from the same two corners, with opposite signs to the last
// bit, so that no ray passes between them.
//
// Only IEEE operations and tables, without contraction: the same bytes on every CPU and by every compiler.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

namespace {

constexpr int MAX_LAYERS = 16;             // as raycast.py
constexpr float OPAQUE = 0.995f;           // as raycast.py
constexpr float COLOR_STEP = 0.06f;        // as raycast.py
constexpr double DEPTH_STEP = 3.0;         // as raycast.py
constexpr float NEAR = 1e-6f;              // nearer corners have no place on the picture
constexpr float MARGIN = 1.0f / 256;       // pixels; more than float32 is off at 4096
constexpr int64_t BATCH = int64_t(1) << 18;  // samples at once: bounds the memory of their layers
constexpr int MAX_SAMPLES = 256;           // a pixel: 16 x 16
constexpr int AHEAD = 8;                   // samples: how long before it is shaded a face is fetched
constexpr int64_t LARGE = 10000;           // faces: fewer stay in the caches, without fetching them ahead

enum Wrap : int32_t { REPEAT = 0, CLAMP = 1, MIRROR = 2 };

}  // namespace

extern "C" {

struct Texture {
    const void* texels;  // [height, width, 4], uint8 (sRGB) or float32 (linear)
    int32_t height, width, is_float, wrap_u, wrap_v, nearest;
};

struct Mesh {  // every array by face, but for the vertices
    const float* vertices;
    const int32_t* faces;
    const float *tint, *shading, *uv;
    const int32_t* texture;
    const float* cutoff;
    const float* opacity;   // or null
    const uint8_t* unlit;   // or null
    const Texture* textures;
    const float* splats;    // [3, points], along the edges
    int64_t num_vertices, num_faces, num_splats;
};

struct Scene {
    const float *directions, *intensities;  // of the lights
    const uint8_t* encode;  // 8-bit sRGB by 4096 times the square root of linear light
    const float* decode;    // [2, 256], linear light by 8-bit sRGB, and alpha by 8 bits
    const double* offsets;  // [samples, 2], places in the unit pixel
    float ambient;
    int32_t num_lights, num_samples, size;
};

struct Camera {
    double rotation[9], eye[3], focal, x, y;  // camera to world; the picture's centre
};

struct Picture {  // [size, size, ..], all zero
    uint8_t* rgba;
    float* depth;
    uint8_t *normal, *albedo;
};

}  // extern "C"

namespace {

struct Corner {
    float x, y, z, column, row, nearness;  // in the camera's frame; where z >= NEAR, on the picture, and 1 / z
};

struct Edges {
    double x[3], y[3], z[3], inverse;  // normals towards the inside, and 1 / |det|
    bool behind;                       // seen against its winding
};

// Whether a ray can hit the triangle at all: not one that is seen edge on, nor one of no finite place.
inline bool make_edges(const Corner& a, const Corner& b, const Corner& c, Edges& e) {
    const Corner* corner[3] = {&a, &b, &c};
    for (int i = 0; i < 3; i++) {
        const Corner &j = *corner[(i + 1) % 3], &k = *corner[(i + 2) % 3];
        e.x[i] = double(j.y) * k.z - double(j.z) * k.y;
        e.y[i] = double(j.z) * k.x - double(j.x) * k.z;
        e.z[i] = double(j.x) * k.y - double(j.y) * k.x;
    }
    const double det = a.x * e.x[0] + a.y * e.y[0] + a.z * e.z[0];
    const double size = std::fabs(det);
    if (!(size > 1e-290 && size < 1e290)) return false;
    e.inverse = 1 / size;
    e.behind = det > 0;
    if (det < 0)
        for (int i = 0; i < 3; i++) e.x[i] = -e.x[i], e.y[i] = -e.y[i], e.z[i] = -e.z[i];
    return true;
}

// For what only fetches memory ahead of its use: GCC 12 drops calls of functions that do nothing else.
#define INLINE inline __attribute__((always_inline))

typedef float Four __attribute__((vector_size(16)));  // as GCC and Clang have it on every CPU
typedef int32_t Whole __attribute__((vector_size(16)));

template <typename T>
inline T load(const void* from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

template <typename T>
inline T choose(Whole mask, T yes, T no) {
    return (T)((mask & (Whole)yes) | (~mask & (Whole)no));
}

inline float floor_(float value) {  // std::floor calls a function on old x86
    if (!(std::fabs(value) < 8388608.0f)) return value;
    const float whole = float(int32_t(value));
    return whole > value ? whole - 1 : whole;
}

inline int to_int(float value, int low, int high) {  // NaN: low
    if (!(value > float(low))) return low;
    return value < float(high) ? int(value) : high;
}

// ---------------------------------------------------------------- textures

inline float fold(float u, int wrap) {
    if (u >= 0 && u < 1) return u;
    if (wrap == REPEAT) return u - floor_(u);
    if (wrap == MIRROR) return u - 2 * floor_(u / 2);
    return u > 0 ? (u < 1 ? u : 1) : 0;
}

inline int texel_index(int index, int size, int wrap) {  // of -1 .. size, or 2 size where mirrored
    if (wrap == REPEAT) index = index < 0 ? index + size : index >= size ? index - size : index;
    if (wrap == MIRROR) {
        index = index < 0 ? index + 2 * size : index >= 2 * size ? index - 2 * size : index;
        index = index < size ? index : 2 * size - 1 - index;
    }
    return index < 0 ? 0 : index >= size ? size - 1 : index;
}

inline Four read_texel(const Texture& t, const float* decode, int row, int column) {
    const int64_t at = (int64_t(row) * t.width + column) * 4;
    if (t.is_float) {
        return load<Four>(static_cast<const float*>(t.texels) + at);
    }
    const uint8_t* texel = static_cast<const uint8_t*>(t.texels) + at;
    return Four{decode[texel[0]], decode[texel[1]], decode[texel[2]], decode[256 + texel[3]]};
}

INLINE void fetch_texels(const Texture& t, const float* uv) {  // around the middle of a small face
    const float u = (uv[0] + uv[2] + uv[4]) * (1.0f / 3), v = (uv[1] + uv[3] + uv[5]) * (1.0f / 3);
    const int64_t column = to_int(fold(u, t.wrap_u) * t.width - 0.5f, 0, t.width - 1);
    const int64_t row = to_int(fold(1 - v, t.wrap_v) * t.height - 0.5f, 0, t.height - 1);
    const int64_t bytes = t.is_float ? 16 : 4;
    const char* texel = static_cast<const char*>(t.texels) + (row * t.width + column) * bytes;
    for (int down = -1; down < 3; down++) __builtin_prefetch(texel + down * t.width * bytes);
}

inline Four sample_texture(const Texture& t, const float* decode, float u, float v) {
    float x = fold(u, t.wrap_u) * t.width, y = fold(1 - v, t.wrap_v) * t.height;
    if (!(x >= 0)) x = 0;  // of an infinite u
    if (!(y >= 0)) y = 0;
    if (t.nearest) {
        const int row = texel_index(int(y), t.height, t.wrap_v);
        return read_texel(t, decode, row, texel_index(int(x), t.width, t.wrap_u));
    }
    x -= 0.5f, y -= 0.5f;
    const float left = floor_(x), top = floor_(y), fx = x - left, fy = y - top;
    int column = int(left), row = int(top), next_column = column + 1, next_row = row + 1;
    if (!(column >= 0 && next_column < t.width && row >= 0 && next_row < t.height)) {
        column = texel_index(column, t.width, t.wrap_u), next_column = texel_index(next_column, t.width, t.wrap_u);
        row = texel_index(row, t.height, t.wrap_v), next_row = texel_index(next_row, t.height, t.wrap_v);
    }
    const Four upper = read_texel(t, decode, row, column) * (1 - fx) + read_texel(t, decode, row, next_column) * fx;
    const Four lower =
        read_texel(t, decode, next_row, column) * (1 - fx) + read_texel(t, decode, next_row, next_column) * fx;
    return upper * (1 - fy) + lower * fy;
}

// ---------------------------------------------------------------- shading

struct Surface {  // what one ray sees of one face
    float lit[3], plain[3], alpha, normal[3], depth;
};

class Shader {  // remembers the last face: neighbouring rays mostly see the same one
   public:
    Shader(const Mesh& mesh, const Scene& scene, const Corner* corners)
        : mesh(mesh), scene(scene), corners(corners) {}

    // Fetches a face's numbers from memory. Shading waited for these most of its time: small faces that are
    // neighbours on the picture may lie far apart there.
    INLINE void fetch(int64_t number) const {
        for (int end = 0; end < 2; end++) {
            __builtin_prefetch(mesh.tint + 9 * number + 8 * end);
            __builtin_prefetch(mesh.shading + 9 * number + 8 * end);
            __builtin_prefetch(mesh.uv + 6 * number + 5 * end);
            __builtin_prefetch(mesh.faces + 3 * number + 2 * end);
        }
        __builtin_prefetch(mesh.texture + number);
        __builtin_prefetch(mesh.cutoff + number);
    }

    INLINE void fetch_more(int64_t number) const {  // what they point at
        for (int i = 0; i < 3; i++) {
            __builtin_prefetch(corners + mesh.faces[3 * number + i]);
            __builtin_prefetch(mesh.vertices + 3 * int64_t(mesh.faces[3 * number + i]));
        }
        if (mesh.texture[number] >= 0)
            fetch_texels(mesh.textures[mesh.texture[number]], mesh.uv + 6 * number);
    }

    const Surface& shade(int32_t number, double x, double y) {  // the ray (x, y, 1)
        if (number != face) load(number);
        double e[3];
        for (int i = 0; i < 3; i++) e[i] = edges.x[i] * x + (edges.y[i] * y + edges.z[i]);
        const double scale = 1 / (e[0] + e[1] + e[2]);
        surface.depth = float(scale / edges.inverse);
        if (constant) return surface;
        const float w[3] = {float(e[0] * scale), float(e[1] * scale), float(e[2] * scale)};
        if (!even) light(w);
        color(w);
        return surface;
    }

   private:
    const Mesh& mesh;
    const Scene& scene;
    const Corner* corners;
    int32_t face = -1;
    Edges edges{};
    Surface surface{};
    float irradiance = 1, flat[3] = {0, 0, 0};
    bool even = false, constant = false;  // one normal; one colour too

    void load(int32_t number) {
        face = number;
        const int32_t* f = mesh.faces + 3 * int64_t(number);
        make_edges(corners[f[0]], corners[f[1]], corners[f[2]], edges);
        const float *a = mesh.vertices + 3 * int64_t(f[0]), *b = mesh.vertices + 3 * int64_t(f[1]),
                    *c = mesh.vertices + 3 * int64_t(f[2]);
        const float p[3] = {b[0] - a[0], b[1] - a[1], b[2] - a[2]}, q[3] = {c[0] - a[0], c[1] - a[1], c[2] - a[2]};
        flat[0] = p[1] * q[2] - p[2] * q[1], flat[1] = p[2] * q[0] - p[0] * q[2], flat[2] = p[0] * q[1] - p[1] * q[0];
        even = same(mesh.shading + 9 * int64_t(number), 3);
        constant = even && mesh.texture[number] < 0 && same(mesh.tint + 9 * int64_t(number), 3) &&
                   (mesh.opacity == nullptr || same(mesh.opacity + 3 * int64_t(number), 1));
        const float first[3] = {1, 0, 0};
        if (even) light(first);
        if (constant) color(first);
    }

    static bool same(const float* corner, int width) {
        for (int k = 0; k < width; k++)
            if (corner[k] != corner[width + k] || corner[k] != corner[2 * width + k]) return false;
        return true;
    }

    void light(const float* w) {  // the normal on the viewer's side, and what falls on it
        const float* s = mesh.shading + 9 * int64_t(face);
        float n[3];
        for (int k = 0; k < 3; k++) n[k] = w[0] * s[k] + w[1] * s[3 + k] + w[2] * s[6 + k];
        const float length = std::sqrt(n[0] * n[0] + n[1] * n[1] + n[2] * n[2]);
        const bool opposed = flat[0] * n[0] + flat[1] * n[1] + flat[2] * n[2] < 0;
        const float factor = (edges.behind != opposed ? -1.0f : 1.0f) / (length > 1e-12f ? length : 1e-12f);
        for (int k = 0; k < 3; k++) surface.normal[k] = n[k] * factor;
        irradiance = scene.ambient;
        if (mesh.unlit != nullptr && mesh.unlit[face]) {
            irradiance = 1;
            return;
        }
        for (int i = 0; i < scene.num_lights; i++) {
            const float* d = scene.directions + 3 * i;
            const float cosine = surface.normal[0] * d[0] + surface.normal[1] * d[1] + surface.normal[2] * d[2];
            if (cosine > 0) irradiance += cosine * scene.intensities[i];
        }
    }

    void color(const float* w) {
        const int64_t at = face;
        const float* t = mesh.tint + 9 * at;
        for (int k = 0; k < 3; k++) surface.plain[k] = w[0] * t[k] + w[1] * t[3 + k] + w[2] * t[6 + k];
        float alpha = 1;
        if (mesh.opacity != nullptr) {
            const float* o = mesh.opacity + 3 * at;
            alpha = w[0] * o[0] + w[1] * o[1] + w[2] * o[2];
        }
        if (mesh.texture[at] >= 0) {
            const float* uv = mesh.uv + 6 * at;
            const float u = w[0] * uv[0] + w[1] * uv[2] + w[2] * uv[4];
            const float v = w[0] * uv[1] + w[1] * uv[3] + w[2] * uv[5];
            const Four texel = sample_texture(mesh.textures[mesh.texture[at]], scene.decode, u, v);
            for (int k = 0; k < 3; k++) surface.plain[k] *= texel[k];
            alpha *= texel[3];
        }
        const float cutoff = mesh.cutoff[at];
        if (cutoff == 0) alpha = 1;
        if (cutoff > 0) alpha = alpha >= cutoff ? 1.0f : 0.0f;
        surface.alpha = alpha > 0 ? (alpha < 1 ? alpha : 1) : 0;
        for (int k = 0; k < 3; k++) surface.lit[k] = surface.plain[k] * irradiance;
    }
};

struct Pixel {  // sums over rays: lit linear RGB times alpha, alpha, unlit RGB times alpha
    float lit[3], alpha, plain[3], depth, normal[3];

    void add(const Surface& seen, float share) {
        for (int k = 0; k < 3; k++) lit[k] += share * seen.lit[k], plain[k] += share * seen.plain[k];
        alpha += share;
    }
};

// ---------------------------------------------------------------- visibility

struct Layers {  // the nearest see-through faces before what a ray sees, nearest first
    int32_t count = 0, face[MAX_LAYERS];
    float nearness[MAX_LAYERS];  // 1 / depth

    void add(int32_t number, float value) {
        int at = count;
        while (at > 0 && nearness[at - 1] < value) at--;
        // Faces in one place, such as one with its reverse, count once.
        if (at > 0 && coincide(nearness[at - 1], value)) return;
        if (at < count && coincide(value, nearness[at])) {
            face[at] = number, nearness[at] = value;
            return;
        }
        if (at == MAX_LAYERS) return;
        count = std::min(count + 1, MAX_LAYERS);
        for (int i = count - 1; i > at; i--) face[i] = face[i - 1], nearness[i] = nearness[i - 1];
        face[at] = number, nearness[at] = value;
    }

    static bool coincide(float near, float far) {  // depths apart by less than raycast.py's step beyond a surface
        const float depth = 1 / near;
        return 1 / far <= depth * (1 + 2e-6f) + 1e-5f;
    }
};

class Samples {  // the nearest opaque face of each sample, and the see-through ones before it
   public:
    std::vector<float> nearness;
    std::vector<int32_t> face;

    void clear(int64_t num) {
        nearness.assign(num, 0.0f), face.assign(num, -1);
        layered.clear(), slot.clear();
    }

    void add_layer(int64_t sample, int32_t number, float value) {
        if (slot.empty()) slot.assign(face.size(), -1);
        if (slot[sample] < 0) slot[sample] = int32_t(layered.size()), layered.emplace_back();
        layered[slot[sample]].add(number, value);
    }

    const Layers* layers(int64_t sample) const {
        return slot.empty() || slot[sample] < 0 ? nullptr : &layered[slot[sample]];
    }

    // Adds what the ray (x, y, 1) of a sample sees; sets depth and normal if they are wanted.
    void composite(int64_t sample, double x, double y, Shader& shader, Pixel& sum, bool geometry) const {
        float alpha = 0, most = 0;
        const Layers* before = layers(sample);
        const int count = before == nullptr ? 0 : before->count;
        for (int i = 0; i <= count && i < MAX_LAYERS && alpha < OPAQUE; i++) {
            const int32_t number = i < count ? before->face[i] : face[sample];
            if (number < 0) break;
            const Surface& seen = shader.shade(number, x, y);
            const float share = (1 - alpha) * seen.alpha;
            sum.add(seen, share);
            alpha += share;
            if (geometry && share > most) {
                most = share, sum.depth = seen.depth;
                for (int k = 0; k < 3; k++) sum.normal[k] = seen.normal[k];
            }
        }
    }

   private:
    std::vector<Layers> layered;
    std::vector<int32_t> slot;  // into `layered`; empty where nothing is see-through
};

struct Box {  // of pixels, ends included
    int left, right, top, bottom;
};

struct Place {  // of a face on the picture
    float start_x, end_x, start_y, end_y;  // within which it lies
    int16_t left, right, top, bottom;      // pixels that it may touch
    float nearest;                         // at least the 1 / depth of its nearest point
    bool visible, seen;
    int8_t turn;  // when it is drawn: what mostly hides the rest first; 2: see-through

    Box middles() const {  // pixels whose middles it may hold
        return {left + (left + 0.5f < start_x), right - (right + 0.5f > end_x), top + (top + 0.5f < start_y),
                bottom - (bottom + 0.5f > end_y)};
    }
};

class View {
   public:
    View(const Mesh& mesh, const Scene& scene, const Camera& camera)
        : mesh(mesh), scene(scene), camera(camera), corners(mesh.num_vertices), places(mesh.num_faces),
          is_large(mesh.num_faces > LARGE), across(scene.size), down(scene.size) {
        for (int i = 0; i < scene.size; i++)
            across[i] = (i + 0.5 - camera.x) / camera.focal, down[i] = (i + 0.5 - camera.y) / camera.focal;
        project();
        for (std::vector<int32_t>& faces : turns) faces.reserve(mesh.num_faces);
        for (int64_t i = 0; i < mesh.num_faces; i++) {
            place(i, places[i]);
            if (places[i].visible) turns[places[i].turn].push_back(int32_t(i));
        }
    }

    void draw(const Picture& picture) {
        if (region.left > region.right || region.top > region.bottom) return;
        width = region.right - region.left + 1, height = region.bottom - region.top + 1;
        pixels.assign(width * height, Pixel{});
        seen.assign(width * height, -1);
        const int rows = int(std::max(int64_t(1), BATCH / width));
        for (int top = region.top; top <= region.bottom; top += rows)
            draw_middles(top, std::min(top + rows - 1, region.bottom));
        if (scene.num_samples > 1) refine();
        store(picture);
    }

   private:
    const Mesh& mesh;
    const Scene& scene;
    const Camera& camera;
    std::vector<Corner> corners;
    std::vector<Place> places;
    std::vector<int32_t> turns[3];  // the visible faces, by turn
    bool is_large;
    std::vector<double> across, down;  // the rays of columns and rows of pixels, through their middles
    Box region{};
    int64_t width = 0, height = 0;
    std::vector<Pixel> pixels;  // of the region
    std::vector<int32_t> seen;  // the opaque face behind the middle of each
    Samples samples;

    void project() {  // the corners, and the region of the picture that they may cover
        const double *r = camera.rotation, *eye = camera.eye;
        float left = INFINITY, right = -INFINITY, top = INFINITY, bottom = -INFINITY;
        const float focal = float(camera.focal);
        bool near = false;
        for (int64_t i = 0; i < mesh.num_vertices; i++) {
            const float* v = mesh.vertices + 3 * i;
            const double p[3] = {v[0] - eye[0], v[1] - eye[1], v[2] - eye[2]};
            const double x = p[0] * r[0] + p[1] * r[3] + p[2] * r[6], y = p[0] * r[1] + p[1] * r[4] + p[2] * r[7];
            const double z = p[0] * r[2] + p[1] * r[5] + p[2] * r[8];
            Corner& c = corners[i];
            c.x = float(x), c.y = float(y), c.z = float(z), c.nearness = 1 / c.z;
            c.column = c.x * c.nearness * focal + float(camera.x);
            c.row = c.y * c.nearness * focal + float(camera.y);
            near = near || !(c.z >= NEAR);
            left = std::min(left, c.column), right = std::max(right, c.column);
            top = std::min(top, c.row), bottom = std::max(bottom, c.row);
        }
        const int last = scene.size - 1;
        region = {0, last, 0, last};
        if (near) return;
        region = {to_int(left - 1, 0, scene.size), to_int(right + 1, -1, last), to_int(top - 1, 0, scene.size),
                  to_int(bottom + 1, -1, last)};
    }

    void place(int64_t number, Place& p) const {
        const int32_t* f = mesh.faces + 3 * number;
        const Corner &a = corners[f[0]], &b = corners[f[1]], &c = corners[f[2]];
        p.turn = mesh.cutoff[number] != 0 ? 2 : 0;
        if (!(a.z >= NEAR && b.z >= NEAR && c.z >= NEAR)) {  // passes the plane of the eye, or has no place at all
            p.left = int16_t(region.left), p.right = int16_t(region.right);
            p.top = int16_t(region.top), p.bottom = int16_t(region.bottom);
            p.visible = a.z > 0 || b.z > 0 || c.z > 0;
            p.start_x = p.start_y = -INFINITY, p.end_x = p.end_y = p.nearest = INFINITY;
            return;
        }
        const float left = std::min(a.column, std::min(b.column, c.column)) - MARGIN;
        const float right = std::max(a.column, std::max(b.column, c.column)) + MARGIN;
        const float top = std::min(a.row, std::min(b.row, c.row)) - MARGIN;
        const float bottom = std::max(a.row, std::max(b.row, c.row)) + MARGIN;
        p.visible = left < region.right + 1 && right >= region.left && top < region.bottom + 1 && bottom >= region.top;
        if (!p.visible) return;
        p.start_x = left, p.end_x = right, p.start_y = top, p.end_y = bottom;
        p.left = int16_t(to_int(left, region.left, region.right)), p.right = int16_t(to_int(right, region.left, region.right));
        p.top = int16_t(to_int(top, region.top, region.bottom)), p.bottom = int16_t(to_int(bottom, region.top, region.bottom));
        const float turned = (b.column - a.column) * (c.row - a.row) - (c.column - a.column) * (b.row - a.row);
        if (p.turn == 0 && turned > 0) p.turn = 1;  // seen against its winding
        p.nearest = std::max(a.nearness, std::max(b.nearness, c.nearness)) * (1 + 1e-6f);  // rounding of planes
    }

    bool edges_of(int64_t number, Edges& edges) const {
        const int32_t* f = mesh.faces + 3 * number;
        return make_edges(corners[f[0]], corners[f[1]], corners[f[2]], edges);
    }

    // ------------------------------------------------------------ through the middles

    void draw_middles(int top, int bottom) {
        samples.clear(width * (bottom - top + 1));
        for (int turn = 0; turn < 3; turn++)
            for (int32_t i : turns[turn]) {
                Box box = places[i].middles();
                box.top = std::max(box.top, top), box.bottom = std::min(box.bottom, bottom);
                if (box.left <= box.right && box.top <= box.bottom) fill(i, box, top);
            }
        Shader shader(mesh, scene, corners.data());
        const int64_t start = int64_t(top - region.top) * width;
        for (int64_t sample = 0; sample < int64_t(samples.face.size()); sample++) {
            seen[start + sample] = samples.face[sample];
            if (is_large) fetch_ahead(sample, shader);
            const int64_t x = sample % width, y = sample / width;
            samples.composite(sample, across[region.left + x], down[top + y], shader, pixels[start + sample], true);
        }
    }

    INLINE void fetch_ahead(int64_t sample, const Shader& shader) const {
        const int32_t* face = samples.face.data() + sample;
        const int64_t rest = int64_t(samples.face.size()) - sample;
        auto is_new = [=](int at) { return at < rest && face[at] != face[at - 1] && face[at] >= 0; };
        if (is_new(2 * AHEAD)) shader.fetch(face[2 * AHEAD]);
        if (is_new(AHEAD)) shader.fetch_more(face[AHEAD]);
    }

    void fill(int32_t number, const Box& box, int first_row) {
        const bool small = (box.right - box.left) * (box.bottom - box.top) < 16;
        if (small && is_hidden(box, first_row, places[number].nearest)) return;
        Edges e;
        if (!edges_of(number, e)) return;
        for (int y = box.top; y <= box.bottom; y++) {
            double rest[3];
            for (int i = 0; i < 3; i++) rest[i] = e.y[i] * down[y] + e.z[i];
            int left = box.left, right = box.right;
            if (right - left > 8) narrow(e, rest, left, right);
            const int64_t row = int64_t(y - first_row) * width - region.left;
            for (int x = left; x <= right; x++) {
                const double a = e.x[0] * across[x] + rest[0], b = e.x[1] * across[x] + rest[1],
                             c = e.x[2] * across[x] + rest[2];
                if (!(a >= 0 && b >= 0 && c >= 0)) continue;
                const float nearness = float((a + b + c) * e.inverse);
                if (!(nearness > samples.nearness[row + x])) continue;
                if (places[number].turn == 2) {
                    samples.add_layer(row + x, number, nearness);
                } else {
                    samples.nearness[row + x] = nearness, samples.face[row + x] = number;
                }
            }
        }
    }

    bool is_hidden(const Box& box, int first_row, float nearest) const {
        for (int y = box.top; y <= box.bottom; y++) {
            const float* row = samples.nearness.data() + int64_t(y - first_row) * width - region.left;
            for (int x = box.left; x <= box.right; x++)
                if (nearest > row[x]) return false;
        }
        return true;
    }

    // Leaves out pixels of a row that lie outside an edge by more than one.
    void narrow(const Edges& e, const double* rest, int& left, int& right) const {
        for (int i = 0; i < 3; i++) {
            const float column = float(-rest[i] / e.x[i] * camera.focal + camera.x - 0.5);
            if (e.x[i] > 0 && column > left) left = to_int(column - 1, left, right + 1);
            if (e.x[i] < 0 && column < right) right = to_int(column + 2, left - 1, right);
        }
    }

    // ------------------------------------------------------------ several rays a pixel

    std::vector<int32_t> rank;        // of each pixel of the region: how many uneven ones come before it
    std::vector<int32_t> uneven;      // those pixels, in order
    std::vector<int32_t> order;       // faces that touch them, first those seen, which hide most of the others
    std::vector<float> columns, rows;  // each sample's place in its pixel
    std::vector<float> aside, below;   // and its ray relative to that through the middle
    std::vector<float> least;         // of each uneven pixel: the 1 / depth that a face must exceed to be seen
    int stride = 0;                   // samples a pixel, rounded up for vector instructions

    void refine() {
        find_uneven();
        find_order();
        stride = (scene.num_samples + 3) / 4 * 4;
        aside.assign(stride, 0), below.assign(stride, 0), columns.assign(stride, 0.5f), rows.assign(stride, 0.5f);
        for (int s = 0; s < scene.num_samples; s++) {
            columns[s] = float(scene.offsets[2 * s]), rows[s] = float(scene.offsets[2 * s + 1]);
            aside[s] = float((scene.offsets[2 * s] - 0.5) / camera.focal);
            below[s] = float((scene.offsets[2 * s + 1] - 0.5) / camera.focal);
        }
        const int64_t step = std::max(int64_t(1), BATCH / stride), total = int64_t(uneven.size());
        for (int64_t first = 0; first < total; first += step) draw_batch(first, std::min(first + step, total));
    }

    void find_order() {
        for (int32_t face : seen)
            if (face >= 0) places[face].seen = true;
        std::vector<int32_t> others;
        for (const std::vector<int32_t>& faces : turns)
            for (int32_t i : faces)
                if (touches_uneven(places[i])) (places[i].seen ? order : others).push_back(i);
        order.insert(order.end(), others.begin(), others.end());
    }

    bool touches_uneven(const Place& p) const {
        for (int y = p.top; y <= p.bottom; y++) {
            const int32_t* ranks = rank.data() + int64_t(y - region.top) * width - region.left;
            if (ranks[p.left] < ranks[p.right + 1]) return true;
        }
        return false;
    }

    void draw_batch(int64_t first, int64_t last) {  // of uneven pixels
        samples.clear((last - first) * stride);
        least.assign(last - first, 0.0f);
        const int top = region.top + int(uneven[first] / width), bottom = region.top + int(uneven[last - 1] / width);
        for (int32_t i : order)
            if (places[i].top <= bottom && places[i].bottom >= top) fill_uneven(i, first, last);
        Shader shader(mesh, scene, corners.data());
        for (int64_t u = first; u < last; u++) average(u, (u - first) * stride, shader);
    }

    void average(int64_t u, int64_t start, Shader& shader) {  // the colour of an uneven pixel from its samples
        const double x = across[region.left + uneven[u] % width], y = down[region.top + uneven[u] / width];
        Pixel sum{};
        for (int s = 0; s < scene.num_samples; s++) {
            const int32_t face = samples.face[start + s];
            if (is_large) fetch_ahead(start + s, shader);
            if (samples.layers(start + s) != nullptr) {
                samples.composite(start + s, x + aside[s], y + below[s], shader, sum, false);
            } else if (face >= 0) {
                for (int t = s; t < scene.num_samples; t++) {  // all of one face together
                    if (samples.face[start + t] != face || samples.layers(start + t) != nullptr) continue;
                    sum.add(shader.shade(face, x + aside[t], y + below[t]), 1);
                    samples.face[start + t] = -1;
                }
            }
        }
        Pixel& pixel = pixels[uneven[u]];
        const float share = 1.0f / scene.num_samples;
        for (int k = 0; k < 3; k++) pixel.lit[k] = sum.lit[k] * share, pixel.plain[k] = sum.plain[k] * share;
        pixel.alpha = sum.alpha * share;
    }

    struct Spread {  // how each edge and the nearness change from a pixel's middle to its samples
        float edge[3][MAX_SAMPLES], nearness[MAX_SAMPLES], most[3];
    };

    void fill_uneven(int32_t number, int64_t first, int64_t last) {
        const Place& p = places[number];
        Edges e;
        Spread spread;
        bool ready = false;
        const bool is_small = p.right - p.left + p.bottom - p.top <= 2;
        for (int y = p.top; y <= p.bottom; y++) {
            const int32_t* ranks = rank.data() + int64_t(y - region.top) * width - region.left;
            const int64_t begin = std::max<int64_t>(ranks[p.left], first);
            const int64_t end = std::min<int64_t>(ranks[p.right + 1], last);
            for (int64_t u = begin; u < end; u++) {
                if (!(p.nearest > least[u - first])) continue;
                if (!ready) {
                    if (is_small && !may_hit(p, int(uneven[u] % width) + region.left, y, (u - first) * stride)) continue;
                    if (!edges_of(number, e)) return;
                    spread_out(e, spread);
                    ready = true;
                }
                const double x = across[region.left + uneven[u] - int64_t(y - region.top) * width];
                float edge[3];
                double sum = 0;
                for (int i = 0; i < 3; i++) {
                    const double value = e.x[i] * x + (e.y[i] * down[y] + e.z[i]);
                    sum += value;
                    edge[i] = float(value);
                }
                const bool inside = edge[0] >= -spread.most[0] && edge[1] >= -spread.most[1] && edge[2] >= -spread.most[2];
                if (inside) test(number, edge, float(sum * e.inverse), spread, u - first);
            }
        }
    }

    // Whether a sample of this pixel lies within the box around a face, and what it saw so far behind it.
    bool may_hit(const Place& p, int x, int y, int64_t start) const {
        const float left = p.start_x - x, right = p.end_x - x, top = p.start_y - y, bottom = p.end_y - y;
        Whole any{};
        for (int s = 0; s < stride; s += 4) {
            const Four column = load<Four>(&columns[s]), row = load<Four>(&rows[s]);
            any |= (column >= left) & (column <= right) & (row >= top) & (row <= bottom) &
                   (p.nearest > load<Four>(&samples.nearness[start + s]));
        }
        return any[0] | any[1] | any[2] | any[3];
    }

    void spread_out(const Edges& e, Spread& spread) const {
        for (int i = 0; i < 3; i++) {
            const float x = float(e.x[i]), y = float(e.y[i]);
            for (int s = 0; s < stride; s++) spread.edge[i][s] = x * aside[s] + y * below[s];
            // The samples lie within half a pixel of its middle, to rounding.
            spread.most[i] = (std::fabs(x) + std::fabs(y)) * float(0.5001 / camera.focal);
        }
        const float x = float((e.x[0] + e.x[1] + e.x[2]) * e.inverse), y = float((e.y[0] + e.y[1] + e.y[2]) * e.inverse);
        for (int s = 0; s < stride; s++) spread.nearness[s] = x * aside[s] + y * below[s];
    }

    void test(int32_t number, const float* edge, float nearness, const Spread& spread, int64_t pixel) {
        const int64_t start = pixel * stride;
        if (places[number].turn == 2) {
            for (int s = 0; s < scene.num_samples; s++) {
                const float value = nearness + spread.nearness[s];
                if (edge[0] + spread.edge[0][s] >= 0 && edge[1] + spread.edge[1][s] >= 0 &&
                    edge[2] + spread.edge[2][s] >= 0 && value > samples.nearness[start + s])
                    samples.add_layer(start + s, number, value);
            }
            return;
        }
        const Whole numbers = Whole{} + number;
        Four farthest = Four{} + INFINITY;
        for (int s = 0; s < stride; s += 4) {
            float* nearest = samples.nearness.data() + start + s;
            int32_t* face = samples.face.data() + start + s;
            const Four value = nearness + load<Four>(spread.nearness + s), before = load<Four>(nearest);
            const Whole hit = (edge[0] + load<Four>(spread.edge[0] + s) >= 0) &
                              (edge[1] + load<Four>(spread.edge[1] + s) >= 0) &
                              (edge[2] + load<Four>(spread.edge[2] + s) >= 0) & (value > before);
            const Four now = choose(hit, value, before);
            const Whole faces = choose(hit, numbers, load<Whole>(face));
            std::memcpy(nearest, &now, sizeof now), std::memcpy(face, &faces, sizeof faces);
            farthest = choose(now < farthest, now, farthest);
        }
        least[pixel] = std::min(std::min(farthest[0], farthest[1]), std::min(farthest[2], farthest[3]));
    }

    void find_uneven() {
        std::vector<uint8_t> marked(width * height, 0);
        mark_steps(marked.data());
        mark_missed(marked.data());
        rank.resize(width * height + 1);
        uneven.clear();
        for (int64_t i = 0; i < width * height; i++) {
            rank[i] = int32_t(uneven.size());
            if (marked[i]) uneven.push_back(int32_t(i));
        }
        rank[width * height] = int32_t(uneven.size());
    }

    void mark_steps(uint8_t* marked) const {  // pixels that differ from one of their four neighbours
        std::vector<float> roots(width * height * 4);
        for (int64_t i = 0; i < width * height; i++) {
            if (!(pixels[i].alpha > 0)) continue;
            const float values[4] = {pixels[i].lit[0], pixels[i].lit[1], pixels[i].lit[2], pixels[i].alpha};
            for (int k = 0; k < 4; k++) roots[4 * i + k] = std::sqrt(values[k] > 0 ? values[k] : 0.0f);
        }
        auto compare = [&](int64_t a, int64_t b) {
            bool any = false;
            for (int k = 0; k < 4; k++) any |= std::fabs(roots[4 * a + k] - roots[4 * b + k]) > COLOR_STEP;
            marked[a] |= any, marked[b] |= any;
        };
        for (int64_t y = 0; y < height; y++)
            for (int64_t x = 0; x < width; x++) {
                const int64_t at = y * width + x;
                if (x + 1 < width) compare(at, at + 1);
                if (y + 1 < height) compare(at, at + width);
            }
    }

    void mark_missed(uint8_t* marked) const {  // pixels with an edge before everything that their middles saw
        constexpr int BLOCK = 256;
        const float shorter = float(1 - DEPTH_STEP / camera.focal), focal = float(camera.focal);
        const float eye[3] = {float(camera.eye[0]), float(camera.eye[1]), float(camera.eye[2])};
        const float left = float(camera.x) - float(region.left), top = float(camera.y) - float(region.top);
        float r[9], column[BLOCK], row[BLOCK], depth[BLOCK];
        for (int k = 0; k < 9; k++) r[k] = float(camera.rotation[k]);
        std::vector<float> limits(width * height);  // close together: the splats are in no order
        for (int64_t i = 0; i < width * height; i++) limits[i] = pixels[i].depth * shorter;
        for (int64_t first = 0; first < mesh.num_splats; first += BLOCK) {
            const int num = int(std::min<int64_t>(BLOCK, mesh.num_splats - first));
            const float *xs = mesh.splats + first, *ys = xs + mesh.num_splats, *zs = ys + mesh.num_splats;
            for (int i = 0; i < num; i++) {
                const float x = xs[i] - eye[0], y = ys[i] - eye[1], z = zs[i] - eye[2];
                depth[i] = x * r[2] + y * r[5] + z * r[8];
                const float scale = focal / depth[i];
                column[i] = (x * r[0] + y * r[3] + z * r[6]) * scale + left;
                row[i] = (x * r[1] + y * r[4] + z * r[7]) * scale + top;
            }
            for (int i = 0; i < num; i++) {
                const bool inside = (column[i] >= 0) & (column[i] < float(width)) & (row[i] >= 0) &
                                    (row[i] < float(height)) & (depth[i] > 0);
                if (!inside) continue;
                const int64_t at = int64_t(row[i]) * width + int64_t(column[i]);
                const float limit = limits[at];
                marked[at] |= !(limit > 0) | (depth[i] < limit);
            }
        }
    }

    // ------------------------------------------------------------ 8-bit planes

    uint8_t encode(float linear) const {
        const float value = linear > 0 ? (linear < 1 ? linear : 1.0f) : 0.0f;
        return scene.encode[int(std::sqrt(value) * 4096 + 0.5f)];
    }

    void store(const Picture& picture) const {
        for (int64_t y = 0; y < height; y++)
            for (int64_t x = 0; x < width; x++) {
                const Pixel& pixel = pixels[y * width + x];
                if (!(pixel.alpha >= 0.5f / 255)) continue;  // stored as 0: no depth without colour
                const int64_t at = (y + region.top) * scene.size + x + region.left;
                const float scale = 1 / pixel.alpha, alpha = pixel.alpha < 1 ? pixel.alpha : 1.0f;
                for (int k = 0; k < 3; k++) {
                    picture.rgba[4 * at + k] = encode(pixel.lit[k] * scale);
                    picture.albedo[3 * at + k] = encode(pixel.plain[k] * scale);
                }
                picture.rgba[4 * at + 3] = uint8_t(std::lrint(alpha * 255));
                picture.depth[at] = pixel.depth;
                if (!(pixel.depth > 0)) continue;
                for (int k = 0; k < 3; k++) {
                    const float n = pixel.normal[k];
                    picture.normal[3 * at + k] = uint8_t(std::lrint(128 + 127 * (n > -1 ? (n < 1 ? n : 1) : -1)));
                }
            }
    }
};

}  // namespace

// 0, or 1 where memory did not suffice.
extern "C" int32_t draw_view(const Mesh* mesh, const Scene* scene, const Camera* camera, const Picture* picture) {
    try {
        View(*mesh, *scene, *camera).draw(*picture);
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}
