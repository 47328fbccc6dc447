"""The formulas of the papers once more, in NumPy's float64, example by example and class by class.

Each takes student's and teacher's logits [n, classes] and class numbers [n], and gives [n].
"""

import itertools
import math

import numpy as np


def softmax(logits, temperature=1.0):
    powers = [math.exp((x - max(logits)) / temperature) for x in logits]
    return [power / sum(powers) for power in powers]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def rows(formula):
    """A formula of one example's (p, q), as one of a batch at this temperature, times temperature²."""

    def reference(student, teacher, labels, temperature, **arguments):
        pairs = zip(student, teacher, strict=True)
        values = [formula(softmax(t, temperature), softmax(s, temperature), **arguments) for s, t in pairs]
        return temperature**2 * np.array(values)

    return reference


def mixed(a, b, share):
    return [share * x + (1 - share) * y for x, y in zip(a, b, strict=True)]


kd = rows(kl)
reverse_kl = rows(lambda p, q: kl(q, p))
skew_kl = rows(lambda p, q, skew: kl(p, mixed(p, q, skew)))
skew_reverse_kl = rows(lambda p, q, skew: kl(q, mixed(q, p, skew)))


@rows
def jensen_shannon(p, q, teacher_share):
    m = mixed(p, q, teacher_share)
    return teacher_share * kl(p, m) + (1 - teacher_share) * kl(q, m)


def power_divergence(p, q, alpha, clip=math.inf):
    if alpha == 1:
        return kl(p, q)
    if alpha == 0:
        return sum(-b * math.log(min(a / b, clip)) for a, b in zip(p, q, strict=True))
    total = sum(b * min((a / b) ** alpha, clip) for a, b in zip(p, q, strict=True))
    return (total - 1) / (alpha * (alpha - 1))


alpha = rows(power_divergence)
adaptive_alpha = rows(
    lambda p, q, alpha_low, alpha_high, clip: max(power_divergence(p, q, a, clip) for a in (alpha_low, alpha_high))
)


@rows
def balanced(p, q, emphasis):
    entropy = {name: -sum(x * math.log(x) for x in values) for name, values in (("p", p), ("q", q))}
    forward, reverse = (emphasis, 1) if entropy["q"] < entropy["p"] else (1, emphasis)
    return forward * kl(p, q) + reverse * kl(q, p)


def dkd(student, teacher, labels, temperature, alpha, beta):
    values = []
    for s, t, label in zip(student, teacher, labels, strict=True):
        p, q = softmax(t, temperature), softmax(s, temperature)
        others = [c for c in range(len(p)) if c != label]
        target = kl([p[label], 1 - p[label]], [q[label], 1 - q[label]])
        rest = kl([p[c] / (1 - p[label]) for c in others], [q[c] / (1 - q[label]) for c in others])
        values.append(temperature**2 * (alpha * target + beta * rest))
    return np.array(values)


def standardised(student, teacher, labels, temperature):
    scores = [[(row - row.mean()) / row.std(ddof=1) for row in logits] for logits in (student, teacher)]
    return kd(*scores, labels, temperature)


def luminet(student, teacher, labels, temperature):
    scores = [(logits - logits.mean(0)) / np.sqrt(logits.var(0) + 1e-5) for logits in (student, teacher)]
    return kd(*scores, labels, temperature)


def dist_mean(student, teacher, labels, temperature, beta, gamma):
    """The loss of the whole batch."""
    q, p = (np.array([softmax(row, temperature) for row in logits]) for logits in (student, teacher))
    inter = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q, p, strict=True)])
    intra = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T, strict=True)])
    return temperature**2 * (beta * inter + gamma * intra)


def plackett_luce(student, teacher, labels, temperature):
    values = []
    for s, t, label in zip(student, teacher, labels, strict=True):
        order = [label, *sorted((c for c in range(len(t)) if c != label), key=lambda c: -t[c])]
        p, left, value = softmax(t, temperature), list(order), 0.0
        for chosen in order:
            value -= p[chosen] * math.log(math.exp(s[chosen]) / sum(math.exp(s[c]) for c in left))
            left.remove(chosen)
        values.append(value)
    return np.array(values)


def top_scaled(student, teacher, labels, top, scale, alpha, beta, temperature):
    def cosine(a, b):
        return a @ b / math.sqrt(a @ a) / math.sqrt(b @ b)

    scaled = []
    for t, label in zip(teacher, labels, strict=True):
        order = sorted(range(len(t)), key=lambda c: -t[c])
        distance = np.mean([t[c] for c in order[:top]]) - np.mean([t[c] for c in order[top:]])
        row = list(t)
        for rank, c in enumerate(order[:top]):
            row[c] = t[c] * (1 + scale * (top - rank) / top) + scale * distance
        if label not in order[:top]:
            row[label] = t[label] * (1 + scale) + scale * distance
        scaled.append(row)
    scaled = np.array(scaled)
    likeness = [[cosine(a, b) / temperature for b in scaled] for a in student]
    values = []
    for i, t in enumerate(teacher):
        order = sorted(range(len(t)), key=lambda c: -t[c])
        groups = (alpha, order[:top]), (beta, order[-top:]), (1.0, order[top:-top])
        loss = sum(weight * (1 - cosine(student[i][group], scaled[i][group])) for weight, group in groups if group)
        column = [row[i] for row in likeness]
        values.append(loss - 0.5 * math.log(softmax(likeness[i])[i]) - 0.5 * math.log(softmax(column)[i]))
    return np.array(values)


def sinkhorn(student, teacher, labels, temperature, blur, iterations):
    n = len(student)
    q, p = ([softmax(row, temperature) for row in logits] for logits in (student, teacher))
    cost = np.array([[sum(abs(x - y) for x, y in zip(a, b, strict=True)) for b in p] for a in q])
    plan = np.exp(-cost / blur)
    for _ in range(iterations):
        for i in range(n):
            plan[i] = plan[i] / plan[i].sum()
        for j in range(n):
            plan[:, j] = plan[:, j] / plan[:, j].sum()
    return np.array([sum(plan[i, j] * cost[i, j] for j in range(n)) for i in range(n)])


def cheapest_assignment(cost):
    n = len(cost)
    return min(sum(cost[i][j] for i, j in enumerate(order)) for order in itertools.permutations(range(n)))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def binary(student, teacher, labels, focus):
    values = []
    for s, t in zip(student, teacher, strict=True):
        value = 0.0
        for x, y in zip(s, t, strict=True):
            a, b = sigmoid(x), sigmoid(y)
            value += abs(b - a) ** focus * -(b * math.log(a) + (1 - b) * math.log(1 - a))
        values.append(value)
    return np.array(values)


def uld(student, teacher, labels, temperature):
    values = []
    for s, t in zip(student, teacher, strict=True):
        q, p = (sorted(softmax(row, temperature), reverse=True) for row in (s, t))
        pairs = itertools.zip_longest(q, p, fillvalue=0.0)
        values.append(sum(abs(a - b) for a, b in pairs))
    return np.array(values)


def predictions(student, teacher, labels, top, hard):
    values = []
    for s, t in zip(student, teacher, strict=True):
        p, q = softmax(t), softmax(s)
        order = sorted(range(len(p)), key=lambda c: -p[c])
        if hard:
            values.append(-math.log(q[order[0]]))
            continue
        told_p, told_q = ([values[c] for c in order[:top]] for values in (p, q))
        values.append(kl([*told_p, 1 - sum(told_p)], [*told_q, 1 - sum(told_q)]))
    return np.array(values)


def taid(student, teacher, labels, share):
    targets = (1 - share) * student + share * teacher
    return np.array([kl(softmax(target), softmax(s)) for target, s in zip(targets, student, strict=True)])


def binary_norm(student, teacher, labels, temperature):
    values = []
    for s, t in zip(student, teacher, strict=True):
        coins = [1 / (1 + math.exp(-(a - b) / temperature)) for a, b in zip(s, t, strict=True)]
        values.append(temperature**2 * sum(kl([0.5, 0.5], [coin, 1 - coin]) for coin in coins))
    return np.array(values)
