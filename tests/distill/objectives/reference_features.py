"""The papers' formulas of the objectives on features, written out in float64 NumPy, one number at a time."""

import itertools
import math

import numpy as np


def unit(vector):
    length = math.sqrt(sum(float(v) ** 2 for v in vector))
    return np.array([float(v) / length for v in vector])


def cosine(a, b):
    return float(sum(x * y for x, y in zip(unit(a), unit(b), strict=True)))


def softmax(values):
    powers = [math.exp(v - max(values)) for v in values]
    return [p / sum(powers) for p in powers]


def divergence(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def huber(d):
    return d * d / 2 if abs(d) < 1 else abs(d) - 0.5


def pooled(feature, size):
    """[channels, height, width] -> [channels, size, size] where size divides both."""
    channels, height, width = feature.shape
    h, w = height // size, width // size
    out = np.zeros((channels, size, size))
    for c, y, x in itertools.product(range(channels), range(size), range(size)):
        out[c, y, x] = sum(feature[c, y * h + i, x * w + j] for i in range(h) for j in range(w)) / (h * w)
    return out


def tokens(feature):
    """[channels, *positions] -> a list of one vector a position."""
    return list(feature.reshape(len(feature), -1).T)


def hint(s, t):
    return [len(a.ravel()) * np.mean((unit(a.ravel()) - unit(b.ravel())) ** 2) for a, b in zip(s, t, strict=True)]


def attention_transfer(s, t):
    def seen(feature):
        return unit([sum(float(v) ** 2 for v in token) for token in tokens(feature)])

    return [np.mean((seen(a) - seen(b)) ** 2) for a, b in zip(s, t, strict=True)]


def class_attention(s, t):
    values = []
    for a, b in zip(s, t, strict=True):
        maps = [[unit(one.ravel()) for one in pooled(feature, 2)] for feature in (a, b)]
        values.append(np.mean([(x - y) ** 2 for x, y in zip(*maps, strict=True)]))
    return values


def standardised(x):
    out = np.zeros(x.shape)
    for c in range(x.shape[1]):
        mean = sum(x[:, c]) / len(x)
        variance = sum((v - mean) ** 2 for v in x[:, c]) / len(x)
        out[:, c] = [(v - mean) / math.sqrt(variance + 1e-5) for v in x[:, c]]
    return out


def layer_normalised(x):
    return standardised(x.T).T


def whitened(x):
    centred = x - x.mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(x))
    root = np.zeros((x.shape[1], x.shape[1]))
    for value, vector in zip(values, vectors.T, strict=True):
        if value > 1e-5 * values[-1]:
            root += np.outer(vector, vector) / math.sqrt(value)
    return centred @ root


def orthogonal_match(normalise):
    def value(s, t):
        t = normalise(t)
        return [np.mean([huber(x - y) for x, y in zip(a, b, strict=True)]) for a, b in zip(s, t, strict=True)]

    return value


def simple_recipe(s, t):
    s, t = standardised(s), standardised(t)
    return [math.log(sum(abs(x - y) ** 4 for x, y in zip(s.ravel(), t.ravel(), strict=True)) + 1e-12)] * len(s)


def masked_recovery(s, t):
    return [sum((x - y) ** 2 for x, y in zip(a.ravel(), b.ravel(), strict=True)) for a, b in zip(s, t, strict=True)]


def dual_view(s, t):
    """With the cosine transform itself: its first coefficient is set to 0."""

    def without_constant(feature):
        channels, height, width = feature.shape
        out = np.array(feature)
        for c in range(channels):
            first = sum(feature[c].ravel()) / math.sqrt(
                height * width
            )  # the orthonormal transform's coefficient (0, 0)
            out[c] -= first / math.sqrt(height * width)  # and what it alone transforms back to
        return out

    def distance(a, b):
        return sum(np.sum((unit(x) - unit(y)) ** 2) for x, y in zip(tokens(a), tokens(b), strict=True))

    return [
        0.08 * distance(a, b) + 0.06 * distance(without_constant(a), without_constant(b))
        for a, b in zip(s, t, strict=True)
    ]


def relational_distance(s, t):
    tables = []
    for features in (s, t):
        table = [[math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True))) for b in features] for a in features]
        positive = [d for row in table for d in row if d > 0]
        tables.append([[d / (sum(positive) / len(positive)) for d in row] for row in table])
    n = len(s)
    return [np.mean([huber(tables[0][i][j] - tables[1][i][j]) for j in range(n)]) for i in range(n)]


def relational_angle(s, t):
    def cosine_at(features, i, j, k):
        if i in (j, k):
            return 0.0
        return cosine(features[j] - features[i], features[k] - features[i])

    n = range(len(s))
    return [np.mean([huber(cosine_at(s, i, j, k) - cosine_at(t, i, j, k)) for j in n for k in n]) for i in n]


def token_context(s, t):
    values = []
    for a, b in zip(s, t, strict=True):
        rows = []
        for i in range(len(tokens(a))):
            q, p = (softmax([cosine(tokens(f)[i], other) for other in tokens(f)]) for f in (a, b))
            rows.append(divergence(p, q))
        values.append(np.mean(rows))
    return values


def token_graph(s, t):
    values = []
    for i in range(len(s)):
        rows = []
        for token in range(len(tokens(s[i]))):
            q, p = (
                softmax([cosine(tokens(f[i])[token], o) for j in range(len(f)) if j != i for o in tokens(f[j])])
                for f in (s, t)
            )
            rows.append(divergence(p, q))
        values.append(np.mean(rows))
    return values


def attention_relations(heads):
    def value(s, t):
        values = []
        for a, b in zip(s, t, strict=True):
            parts = []
            for head, i in itertools.product(range(heads), range(len(a))):
                both = []
                for f in (a, b):
                    d = f.shape[1] // heads
                    part = f[:, head * d : (head + 1) * d]
                    both.append(softmax([float(part[i] @ part[j]) / math.sqrt(d) for j in range(len(part))]))
                parts.append(divergence(both[1], both[0]))
            values.append(np.mean(parts))
        return values

    return value


def info_nce(s, t, temperature=0.07):
    return [-math.log(softmax([cosine(a, b) / temperature for b in t])[i]) for i, a in enumerate(s)]


def contrastive(population, temperature=0.07, memory=((), ())):
    def value(s, t):
        n = len(s)
        negatives = n - 1 + len(memory[0])

        def h(a, b):
            power = math.exp(cosine(a, b) / temperature)
            return power / (power + negatives / population)

        return [
            -2 * math.log(h(s[i], t[i]))
            - sum(math.log(1 - h(s[i], t[j])) + math.log(1 - h(s[j], t[i])) for j in range(n) if j != i)
            - sum(math.log(1 - h(s[i], np.array(earlier))) for earlier in memory[1])
            - sum(math.log(1 - h(np.array(earlier), t[i])) for earlier in memory[0])
            for i in range(n)
        ]

    return value


def dynamic_contrastive(hardest, temperature, focus):
    def value(s, t):
        values = []
        for i in range(len(s)):
            others = sorted((j for j in range(len(s)) if j != i), key=lambda j: -cosine(t[i], t[j]))[:hardest]
            powers = [math.exp(cosine(s[i], t[j]) / temperature) for j in (i, *others)]
            share = powers[0] / sum(powers)
            values.append(-((1 - share) ** focus) * math.log(share))
        return values

    return value


def multi_scale(s, t):
    scales = []
    for scale in (1, 2):
        maps = [np.array([pooled(f, scale) for f in features]) for features in (s, t)]
        places = itertools.product(range(scale), range(scale))
        scales.append(np.mean([info_nce(maps[0][:, :, y, x], maps[1][:, :, y, x]) for y, x in places], axis=0))
    return np.mean(scales, axis=0)


def pixel_contrast(s, t):
    means = [np.mean(tokens(f), axis=0) for f in t]
    values = []
    for i in range(len(s)):
        rows = []
        for a, b in zip(tokens(s[i]), tokens(t[i]), strict=True):
            positive = math.exp(cosine(a, b) / 0.2)
            negative = sum(math.exp(cosine(a, means[k]) / 0.2) for k in range(len(s)) if k != i)
            rows.append(-math.log(positive / (positive + negative)))
        values.append(np.mean(rows))
    return values


def local_transport(s, t):
    """Sinkhorn on the kernel itself, as in Cuturi's paper: u and v scale rows and columns."""
    n = len(s)
    cost = np.array([[1 - cosine(a, b) for b in t] for a in s])
    kernel = np.exp(-cost / 0.05)
    u = np.ones(n)
    for _ in range(50):
        v = (1 / n) / (kernel.T @ u)
        u = (1 / n) / (kernel @ v)
    return [n * sum(u[i] * kernel[i, j] * v[j] * cost[i, j] for j in range(n)) for i in range(n)]


def mutual_information(alpha):
    def value(scores, log_baseline):
        n = len(scores)
        values = []
        for i in range(n):
            powers = [math.exp(x) for x in scores[i]]
            q = math.exp(log_baseline[i])
            others = [powers[j] for j in range(n) if j != i]
            joint = math.log(powers[i] / (alpha * sum(powers) / n + (1 - alpha) * q))
            below = alpha * sum(others) / (n - 1) + (1 - alpha) * q
            values.append(-(1 + joint - sum(p / below for p in others) / (n - 1)))
        return values

    return value


def target_enhanced(labels, gamma, temperature):
    def value(s, t):
        values = []
        for a, b, label in zip(s, t, labels, strict=True):
            q, p = softmax(list(a / temperature)), softmax(list(b / temperature))
            hot = [float(c == label) for c in range(len(p))]
            values.append(-sum(((x + y) ** gamma - y) * math.log(z) for x, y, z in zip(p, hot, q, strict=True)))
        return values

    return value
