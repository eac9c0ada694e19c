// A tree of boxes over triangles: distances to them, and winding numbers about points. Called by triangle_tree.py.
//
// Winding numbers are added up from two kinds of triangles, which have a tree each:
//
// - Those that close up (every edge is passed as often forwards as backwards): the signed crossings of the ray
//   from the point along +x, which are the winding number itself. Whether the ray passes a triangle is told by the
//   crossings of its edges, in the plane across x, with the line beside the ray; two triangles get the edge that
//   they share from the same two ends in the same order, so that their answers fit to the last bit.
// - Others: solid angles (Van Oosterom and Strackee 1983) of the triangles nearby and one dipole for all triangles
//   of a box far away (Barill 2018, "Fast Winding Numbers for Soups and Clouds", first order).
//
// Only IEEE operations without contraction, but for one atan2 a point: the same answers on every CPU.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <new>
#include <vector>

namespace {

constexpr int LEAF = 4;       // triangles
constexpr int STACK = 128;    // halving leaves a depth of 32, and each level leaves one node waiting
constexpr double FAR = 3.0;   // radii of a box from which its dipole stands for it; Barill's beta
constexpr double PI = 3.14159265358979323846;

struct Vec {
    double x, y, z;
};

Vec operator-(Vec a, Vec b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
Vec operator+(Vec a, Vec b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
Vec operator*(double s, Vec a) { return {s * a.x, s * a.y, s * a.z}; }
double dot(Vec a, Vec b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
Vec cross(Vec a, Vec b) { return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x}; }
double component(Vec a, int axis) { return axis == 0 ? a.x : axis == 1 ? a.y : a.z; }
Vec smaller(Vec a, Vec b) { return {std::min(a.x, b.x), std::min(a.y, b.y), std::min(a.z, b.z)}; }
Vec larger(Vec a, Vec b) { return {std::max(a.x, b.x), std::max(a.y, b.y), std::max(a.z, b.z)}; }

struct Triangle {
    Vec a, b, c;
};

struct Box {
    Vec low, high;

    double squared_distance(Vec p) const {
        const Vec out = larger(larger(low - p, p - high), {0, 0, 0});
        return dot(out, out);
    }
};

struct Node {
    Box box;
    int32_t first, count;  // of a leaf's triangles; count 0: its two children, first and first + 1
};

struct Dipole {
    Vec place, moment;  // middle by area, and half of the sum of all cross products
    double far;         // squared distance from which it stands for the node
};

struct Tree {
    std::vector<Triangle> triangles;
    std::vector<Node> nodes;
    std::vector<Dipole> dipoles;  // by node; made when they are first asked for
};

Box bounds(const Triangle& t) {
    return {smaller(smaller(t.a, t.b), t.c), larger(larger(t.a, t.b), t.c)};
}

Vec middle(const Box& box) { return 0.5 * (box.low + box.high); }

struct Item {
    Box box;
    int32_t triangle;
};

// Halves the triangles by their middles along the longest side of the box, until few are left.
void split(std::vector<Item>& items, std::vector<Node>& nodes, int32_t node, int32_t begin, int32_t end) {
    Box box = items[begin].box, middles = {middle(box), middle(box)};
    for (int32_t i = begin + 1; i < end; ++i) {
        const Box& own = items[i].box;
        box = {smaller(box.low, own.low), larger(box.high, own.high)};
        middles = {smaller(middles.low, middle(own)), larger(middles.high, middle(own))};
    }
    nodes[node] = {box, begin, end - begin};
    if (end - begin <= LEAF) return;
    const Vec size = middles.high - middles.low;
    const int axis = size.x >= size.y && size.x >= size.z ? 0 : size.y >= size.z ? 1 : 2;
    const int32_t half = begin + (end - begin) / 2;
    std::nth_element(items.begin() + begin, items.begin() + half, items.begin() + end,
                     [axis](const Item& one, const Item& other) {
                         const double a = component(middle(one.box), axis), b = component(middle(other.box), axis);
                         return a != b ? a < b : one.triangle < other.triangle;
                     });
    const int32_t child = static_cast<int32_t>(nodes.size());
    nodes.resize(nodes.size() + 2);
    nodes[node].first = child, nodes[node].count = 0;
    split(items, nodes, child, begin, half);
    split(items, nodes, child + 1, half, end);
}

// Places of the points along a curve that fills space (Morton's): neighbours on it touch the same nodes.
std::vector<int32_t> along_curve(const Box& box, const Vec* points, int64_t num) {
    const Vec size = box.high - box.low;
    const double scale = 1023 / std::max({size.x, size.y, size.z, 1e-300});
    auto spread = [](double along) {
        uint32_t bits = static_cast<uint32_t>(std::min(std::max(along, 0.0), 1023.0));
        bits = (bits | bits << 16) & 0x030000FF;
        bits = (bits | bits << 8) & 0x0300F00F;
        bits = (bits | bits << 4) & 0x030C30C3;
        return (bits | bits << 2) & 0x09249249;
    };
    std::vector<std::pair<uint32_t, int32_t>> codes(num);
    for (int64_t i = 0; i < num; ++i) {
        const Vec p = scale * (points[i] - box.low);
        codes[i] = {spread(p.x) | spread(p.y) << 1 | spread(p.z) << 2, static_cast<int32_t>(i)};
    }
    std::sort(codes.begin(), codes.end());
    std::vector<int32_t> order(num);
    for (int64_t i = 0; i < num; ++i) order[i] = codes[i].second;
    return order;
}

double squared_to_segment(Vec a, Vec along, Vec p) {
    const double length = dot(along, along), t = dot(p - a, along);
    const Vec away = t <= 0 || length <= 0 ? p - a : t >= length ? p - a - along : p - a - (t / length) * along;
    return dot(away, away);
}

double squared_to_triangle(const Triangle& t, Vec p) {
    const Vec ab = t.b - t.a, bc = t.c - t.b, ca = t.a - t.c, normal = cross(ab, t.c - t.a);
    const bool over_ab = dot(cross(normal, ab), p - t.a) > 0, over_bc = dot(cross(normal, bc), p - t.b) > 0,
               over_ca = dot(cross(normal, ca), p - t.c) > 0;
    if (over_ab && over_bc && over_ca) {
        const double height = dot(normal, p - t.a);
        return height * height / dot(normal, normal);
    }
    return std::min({squared_to_segment(t.a, ab, p), squared_to_segment(t.b, bc, p), squared_to_segment(t.c, ca, p)});
}

double nearest(const Tree& tree, Vec p, double best, int32_t& found) {
    struct Waiting {
        int32_t node;
        double squared;
    } stack[STACK];
    int top = 0;
    stack[top++] = {0, tree.nodes[0].box.squared_distance(p)};
    while (top) {
        const Waiting next = stack[--top];
        if (next.squared >= best) continue;
        const Node& node = tree.nodes[next.node];
        for (int32_t i = node.first; i < node.first + node.count; ++i) {
            const double squared = squared_to_triangle(tree.triangles[i], p);
            if (squared < best) best = squared, found = i;
        }
        if (node.count) continue;
        const double one = tree.nodes[node.first].box.squared_distance(p),
                     other = tree.nodes[node.first + 1].box.squared_distance(p);
        const int32_t farther = one <= other;
        stack[top++] = {node.first + farther, farther ? other : one};
        stack[top++] = {node.first + 1 - farther, farther ? one : other};
    }
    return best;
}

// 1 or -1 where the line beside the ray from p passes the edge from u to v, by its direction, 0 where it doesn't.
int passes(Vec u, Vec v, Vec p) {
    const bool below = u.y <= p.y;
    if (below == (v.y <= p.y)) return 0;
    const Vec low = below ? u : v, high = below ? v : u;
    const bool beyond = (high.y - low.y) * (p.z - low.z) < (high.z - low.z) * (p.y - low.y);
    return !beyond ? 0 : below ? -1 : 1;
}

int crossings(const Triangle& t, Vec p) {
    const int around = passes(t.a, t.b, p) + passes(t.b, t.c, p) + passes(t.c, t.a, p);
    if (!around) return 0;
    if (std::min({t.a.x, t.b.x, t.c.x}) > p.x) return around;
    if (std::max({t.a.x, t.b.x, t.c.x}) <= p.x) return 0;
    return around * dot(cross(t.b - t.a, t.c - t.a), t.a - p) > 0 ? around : 0;
}

int crossings(const Tree& tree, Vec p) {
    int32_t stack[STACK];
    int top = 0, sum = 0;
    stack[top++] = 0;
    while (top) {
        const Node& node = tree.nodes[stack[--top]];
        const Box& box = node.box;
        if (p.x > box.high.x || p.y < box.low.y || p.y > box.high.y || p.z < box.low.z || p.z > box.high.z) continue;
        for (int32_t i = node.first; i < node.first + node.count; ++i) sum += crossings(tree.triangles[i], p);
        if (node.count) continue;
        stack[top++] = node.first;
        stack[top++] = node.first + 1;
    }
    return sum;
}

void make_dipoles(Tree& tree) {
    tree.dipoles.resize(tree.nodes.size());
    std::vector<double> areas(tree.nodes.size());
    for (int64_t n = static_cast<int64_t>(tree.nodes.size()) - 1; n >= 0; --n) {  // children come after their node
        const Node& node = tree.nodes[n];
        Vec place = {0, 0, 0}, moment = {0, 0, 0};
        double area = 0;
        auto add = [&](double more, Vec at, Vec own) {
            area += more, place = place + more * at, moment = moment + own;
        };
        for (int32_t i = node.first; i < node.first + node.count; ++i) {
            const Triangle& t = tree.triangles[i];
            const Vec own = 0.5 * cross(t.b - t.a, t.c - t.a);
            add(std::sqrt(dot(own, own)), (1.0 / 3) * (t.a + t.b + t.c), own);
        }
        for (int32_t child = node.first; !node.count && child < node.first + 2; ++child)
            add(areas[child], tree.dipoles[child].place, tree.dipoles[child].moment);
        place = area > 0 ? (1 / area) * place : middle(node.box);
        areas[n] = area;
        const Vec reach = larger(node.box.high - place, place - node.box.low);
        tree.dipoles[n] = {place, moment, FAR * FAR * dot(reach, reach)};
    }
}

// Adds up angles by multiplying complex numbers, so that all of them together take one atan2.
struct Angle {
    double re = 1, im = 0;
    int turns = 0;

    void add(double x, double y) {
        const double r = re * x - im * y, i = re * y + im * x, size = std::abs(r) + std::abs(i);
        if (!(size > 0)) return;  // a point on a corner sees no angle
        if (im >= 0 && y >= 0 && i < 0) ++turns;
        if (im < 0 && y < 0 && i >= 0) --turns;
        re = r / size, im = i / size;
    }

    double value() const { return std::atan2(im, re) + 2 * PI * turns; }
};

void add_solid_angle(const Triangle& t, Vec p, Angle& half) {
    const Vec a = t.a - p, b = t.b - p, c = t.c - p;
    const double la = std::sqrt(dot(a, a)), lb = std::sqrt(dot(b, b)), lc = std::sqrt(dot(c, c));
    half.add(la * lb * lc + dot(a, b) * lc + dot(b, c) * la + dot(c, a) * lb, dot(a, cross(b, c)));
}

double winding(const Tree& tree, Vec p) {
    int32_t stack[STACK];
    int top = 0;
    double far = 0;
    Angle half;
    stack[top++] = 0;
    while (top) {
        const int32_t n = stack[--top];
        const Dipole& dipole = tree.dipoles[n];
        const Vec away = dipole.place - p;
        const double squared = dot(away, away);
        if (squared > dipole.far) {
            far += dot(dipole.moment, away) / (squared * std::sqrt(squared));
            continue;
        }
        const Node& node = tree.nodes[n];
        for (int32_t i = node.first; i < node.first + node.count; ++i) add_solid_angle(tree.triangles[i], p, half);
        if (node.count) continue;
        stack[top++] = node.first;
        stack[top++] = node.first + 1;
    }
    return (far + 2 * half.value()) / (4 * PI);
}

}  // namespace

extern "C" {

// corners: [triangles, 3, 3]. Null without the memory for it.
Tree* make_tree(const double* corners, int64_t num) try {
    const auto* triangles = reinterpret_cast<const Triangle*>(corners);
    std::vector<Item> items(num);
    for (int64_t i = 0; i < num; ++i) items[i] = {bounds(triangles[i]), static_cast<int32_t>(i)};
    auto* tree = new Tree;
    tree->nodes.reserve(num);
    tree->nodes.resize(1);
    split(items, tree->nodes, 0, 0, static_cast<int32_t>(num));
    tree->triangles.reserve(num);
    for (const Item& item : items) tree->triangles.push_back(triangles[item.triangle]);
    return tree;
} catch (const std::bad_alloc&) {
    return nullptr;
}

void free_tree(Tree* tree) { delete tree; }

// Lowers squared distances to that to the nearest triangle, where it is nearer. 0, or 1 without the memory for it.
int32_t lower_distances(const Tree* tree, const double* places, int64_t num, double* squared) try {
    const auto* points = reinterpret_cast<const Vec*>(places);
    int32_t found = 0;
    for (const int32_t i : along_curve(tree->nodes[0].box, points, num)) {
        // What was nearest to the neighbour bounds the search.
        const double bound = squared_to_triangle(tree->triangles[found], points[i]);
        squared[i] = nearest(*tree, points[i], std::min(bound, squared[i]), found);
    }
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}

// Adds the winding numbers of triangles that close up.
int32_t add_crossings(const Tree* tree, const double* places, int64_t num, double* sums) try {
    const auto* points = reinterpret_cast<const Vec*>(places);
    for (const int32_t i : along_curve(tree->nodes[0].box, points, num)) sums[i] += crossings(*tree, points[i]);
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}

// Adds the winding numbers of any triangles, nearly.
int32_t add_windings(Tree* tree, const double* places, int64_t num, double* sums) try {
    const auto* points = reinterpret_cast<const Vec*>(places);
    if (tree->dipoles.empty()) make_dipoles(*tree);
    for (const int32_t i : along_curve(tree->nodes[0].box, points, num)) sums[i] += winding(*tree, points[i]);
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}

}  // extern "C"
