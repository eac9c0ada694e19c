// Farthest-point order (Gonzalez 1985): each point is the farthest from those before it. Called by farthest.py.
//
// Points lie in the leaves of a tree of boxes, whose nodes know the farthest point in them. A new point reaches
// only the boxes that are nearer to it than their farthest point is to those chosen before: what a plain loop over
// all points finds, number by number, with the lowest number of those that are equally far.
//
// Only IEEE operations without contraction: the same order on every CPU.

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <new>
#include <vector>

namespace {

constexpr int32_t LEAF = 16;  // points
constexpr float CHOSEN = -1;  // in place of a squared distance

using Point = std::array<float, 3>;

struct Place {
    Point at;
    int32_t number;
    float squared;  // distance to the points chosen so far
};

struct Node {
    Point low, high;
    int32_t begin, end, child;  // its places; the first of its two children, or 0 for a leaf
    int32_t farthest;           // place
};

struct Order {
    std::vector<Place> places;
    std::vector<Node> nodes;

    bool is_farther(int32_t one, int32_t other) const {
        const Place &a = places[one], &b = places[other];
        return a.squared != b.squared ? a.squared > b.squared : a.number < b.number;
    }

    void split(int32_t node, int32_t begin, int32_t end) {
        Point low = places[begin].at, high = low;
        for (int32_t i = begin + 1; i < end; ++i)
            for (int axis = 0; axis < 3; ++axis) {
                low[axis] = std::min(low[axis], places[i].at[axis]);
                high[axis] = std::max(high[axis], places[i].at[axis]);
            }
        nodes[node] = {low, high, begin, end, 0, begin};
        if (end - begin <= LEAF) return;
        int axis = 0;
        for (int other = 1; other < 3; ++other)
            if (high[other] - low[other] > high[axis] - low[axis]) axis = other;
        const int32_t half = begin + (end - begin) / 2, child = static_cast<int32_t>(nodes.size());
        std::nth_element(places.begin() + begin, places.begin() + half, places.begin() + end,
                         [axis](const Place& one, const Place& other) {
                             const float a = one.at[axis], b = other.at[axis];
                             return a != b ? a < b : one.number < other.number;
                         });
        nodes.resize(nodes.size() + 2);
        nodes[node].child = child;
        split(child, begin, half);
        split(child + 1, half, end);
    }

    float squared_to_box(const Node& node, const Point& p) const {
        float sum = 0;
        for (int axis = 0; axis < 3; ++axis) {
            const float out = std::max(std::max(node.low[axis] - p[axis], p[axis] - node.high[axis]), 0.0f);
            sum += out * out;
        }
        return sum;
    }

    // Lowers the distances within a node to those to a chosen point.
    void lower(int32_t number, int32_t chosen, const Point& p) {
        Node& node = nodes[number];
        const bool within = node.begin <= chosen && chosen < node.end;
        if (!within && squared_to_box(node, p) >= places[node.farthest].squared) return;
        if (node.child) {
            lower(node.child, chosen, p);
            lower(node.child + 1, chosen, p);
            const int32_t one = nodes[node.child].farthest, other = nodes[node.child + 1].farthest;
            node.farthest = is_farther(one, other) ? one : other;
            return;
        }
        int32_t farthest = node.begin;
        for (int32_t i = node.begin; i < node.end; ++i) {
            Place& place = places[i];
            const float x = place.at[0] - p[0], y = place.at[1] - p[1], z = place.at[2] - p[2];
            place.squared = std::min(place.squared, x * x + y * y + z * z);
            if (i == chosen) place.squared = CHOSEN;
            if (is_farther(i, farthest)) farthest = i;
        }
        node.farthest = farthest;
    }
};

}  // namespace

// Numbers of the first `chosen` of `num` points [num, 3], beginning with number 0. 0, or 1 without the memory for it.
extern "C" int32_t farthest_first(const float* points, int64_t num, int64_t chosen, int64_t* numbers) try {
    Order order;
    order.places.resize(num);
    for (int64_t i = 0; i < num; ++i)
        order.places[i] = {{points[3 * i], points[3 * i + 1], points[3 * i + 2]}, static_cast<int32_t>(i),
                           std::numeric_limits<float>::infinity()};
    order.nodes.resize(1);
    order.split(0, 0, static_cast<int32_t>(num));
    int32_t next = 0;
    while (order.places[next].number != 0) ++next;
    for (int64_t i = 0; i < chosen; ++i) {
        numbers[i] = order.places[next].number;
        order.lower(0, next, order.places[next].at);
        next = order.nodes[0].farthest;
    }
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}
