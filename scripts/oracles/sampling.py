#!/usr/bin/env python3
"""Expected distributions of samplers, in float64, from their published definitions and the
semantics of llama.cpp's chain (src/llama-sampler.cpp), for llm/tests/sampling.rs.

    python3 scripts/oracles/sampling.py > llm/tests/data/sampling.json

Each case: logits, tokens before, settings, and the distribution that is left: pairs of token and
probability, most probable first.
"""

import json
import math

import numpy as np

rng = np.random.default_rng(7)


def softmax(x):
    x = np.asarray(x, dtype=np.float64)
    e = np.exp(x - x.max())
    return e / e.sum()


class Chain:
    """Candidates as a dict of token to logit; every step returns a smaller or changed one."""

    def __init__(self, logits):
        self.c = {i: float(l) for i, l in enumerate(logits)}

    def ranked(self):
        return sorted(self.c, key=lambda t: (-self.c[t], t))

    def probs(self):
        order = self.ranked()
        p = softmax([self.c[t] for t in order])
        return dict(zip(order, p))

    def keep(self, tokens):
        self.c = {t: self.c[t] for t in tokens}

    def bias(self, pairs):
        for t, b in pairs:
            self.c[t] += b

    def penalties(self, history, last_n, repeat, frequency, presence):
        recent = history[-last_n:] if last_n > 0 else []
        for t in set(recent):
            if t not in self.c:
                continue
            count = recent.count(t)
            logit = self.c[t]
            logit = logit * repeat if logit <= 0 else logit / repeat
            self.c[t] = logit - count * frequency - presence

    def dry(self, history, multiplier, base, allowed, last_n):
        # By comparison of every pair of suffixes: no Z-algorithm here.
        h = history[-last_n:] if last_n is not None else history
        n = len(h)
        if n <= allowed:
            return
        longest = {}
        for end in range(1, n):  # an earlier suffix ends before position `end`
            length = 0
            while length < end and h[end - 1 - length] == h[n - 1 - length]:
                length += 1
            if length >= allowed:
                longest[h[end]] = max(longest.get(h[end], 0), length)
        for t, length in longest.items():
            if t in self.c:
                self.c[t] -= multiplier * base ** (length - allowed)

    def top_n_sigma(self, n):
        values = np.array(list(self.c.values()))
        least = values.max() - n * values.std()
        self.keep([t for t in self.c if self.c[t] >= least])

    def top_k(self, k):
        self.keep(self.ranked()[:k])

    def typical(self, p):
        probs = self.probs()
        entropy = -sum(q * math.log(q) for q in probs.values())
        order = sorted(probs, key=lambda t: abs(-math.log(probs[t]) - entropy))
        kept, total = [], 0.0
        for t in order:
            kept.append(t)
            total += probs[t]
            if total > p:
                break
        self.keep(kept)

    def top_p(self, p):
        probs = self.probs()
        kept, total = [], 0.0
        for t in self.ranked():
            kept.append(t)
            total += probs[t]
            if total >= p:
                break
        self.keep(kept)

    def min_p(self, share):
        probs = self.probs()
        top = max(probs.values())
        self.keep([t for t in self.c if probs[t] >= share * top])

    def xtc(self, threshold):
        """With probability 1."""
        probs = self.probs()
        above = [t for t in self.ranked() if probs[t] >= threshold]
        if len(above) > 1:
            gone = set(above[:-1])
            self.keep([t for t in self.c if t not in gone])

    def temperature(self, t, spread=0.0, exponent=1.0):
        if spread > 0:
            probs = self.probs()
            if len(probs) == 1:
                return
            entropy = -sum(q * math.log(q) for q in probs.values() if q > 0)
            share = (entropy / math.log(len(probs))) ** exponent
            low, high = max(0.0, t - spread), t + spread
            t = low + (high - low) * share
        if t <= 0:
            self.keep(self.ranked()[:1])
            return
        self.c = {k: v / t for k, v in self.c.items()}

    def mirostat(self, version, tau, vocab):
        mu = 2 * tau
        probs = self.probs()
        order = self.ranked()
        if version == 2:
            kept = []
            for t in order:
                if -math.log2(probs[t]) > mu:
                    break
                kept.append(t)
            self.keep(kept or order[:1])
            return
        tb = tt = 0.0
        for i in range(min(99, len(order) - 1)):
            t = math.log((i + 2) / (i + 1))
            b = math.log(probs[order[i]] / probs[order[i + 1]])
            tb += t * b
            tt += t * t
        s = tb / tt
        eps = s - 1
        k = ((eps * 2**mu) / (1 - vocab ** (-eps))) ** (1 / s)
        self.keep(order[: max(int(k), 1)])


NEUTRAL = {
    "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0,
    "top_n_sigma": -1.0, "xtc_probability": 0.0, "xtc_threshold": 0.1, "repeat_penalty": 1.0,
    "frequency_penalty": 0.0, "presence_penalty": 0.0, "repeat_last_n": 64, "dynatemp_range": 0.0,
    "dynatemp_exponent": 1.0, "dry_multiplier": 0.0, "dry_base": 1.75, "dry_allowed_length": 2,
    "dry_last_n": None, "mirostat": 0, "mirostat_tau": 5.0, "logit_bias": [],
}


def run(logits, history, settings):
    s = {**NEUTRAL, **settings}
    chain = Chain(logits)
    chain.bias(s["logit_bias"])
    if s["mirostat"]:
        chain.temperature(s["temperature"], s["dynatemp_range"], s["dynatemp_exponent"])
        chain.mirostat(s["mirostat"], s["mirostat_tau"], len(logits))
        return chain
    chain.penalties(history, s["repeat_last_n"], s["repeat_penalty"], s["frequency_penalty"],
                    s["presence_penalty"])
    if s["dry_multiplier"] > 0:
        chain.dry(history, s["dry_multiplier"], s["dry_base"], s["dry_allowed_length"],
                  s["dry_last_n"])
    if s["top_n_sigma"] > 0:
        chain.top_n_sigma(s["top_n_sigma"])
    if s["top_k"] > 0:
        chain.top_k(s["top_k"])
    if s["typical_p"] < 1:
        chain.typical(s["typical_p"])
    if s["top_p"] < 1:
        chain.top_p(s["top_p"])
    if s["min_p"] > 0:
        chain.min_p(s["min_p"])
    if s["xtc_probability"] > 0:
        chain.xtc(s["xtc_threshold"])
    chain.temperature(s["temperature"], s["dynatemp_range"], s["dynatemp_exponent"])
    return chain


def logits(n, scale=2.0):
    return [round(float(x), 3) for x in rng.normal(0, scale, n)]


CASES = []


def case(settings, n=12, history=(), scale=2.0):
    x = logits(n, scale)
    chain = run(x, list(history), settings)
    probs = chain.probs()
    want = [[t, round(float(p), 9)] for t, p in sorted(probs.items(), key=lambda i: (-i[1], i[0]))]
    CASES.append({"logits": x, "history": list(history), "settings": settings, "want": want})


case({})
for k in (1, 3, 11, 12, 40):
    case({"top_k": k})
for p in (0.05, 0.5, 0.9, 0.999):
    case({"top_p": p})
    case({"typical_p": p})
for p in (0.01, 0.2, 0.7, 1.0):
    case({"min_p": p})
for n in (0.5, 1.0, 2.0):
    case({"top_n_sigma": n})
for threshold in (0.02, 0.1, 0.3, 0.5):
    case({"xtc_probability": 1.0, "xtc_threshold": threshold}, scale=1.0)
for t in (0.0, 0.3, 0.8, 1.7):
    case({"temperature": t})
for t, spread, exponent in ((0.8, 0.5, 1.0), (0.5, 0.9, 2.0), (1.2, 0.3, 0.5)):
    case({"temperature": t, "dynatemp_range": spread, "dynatemp_exponent": exponent})
history = [1, 2, 3, 3, 3, 9, 2, 7]
case({"repeat_penalty": 1.4}, history=history)
case({"repeat_penalty": 0.7, "repeat_last_n": 3}, history=history)
case({"frequency_penalty": 0.9}, history=history)
case({"presence_penalty": 0.9}, history=history)
case({"repeat_penalty": 1.2, "frequency_penalty": 0.5, "presence_penalty": -0.4,
      "repeat_last_n": 5}, history=history)
case({"repeat_penalty": 1.9, "repeat_last_n": 0}, history=history)
repeating = [4, 5, 6, 7, 1, 4, 5, 6, 8, 4, 5, 6]
case({"dry_multiplier": 0.8}, history=repeating)
case({"dry_multiplier": 1.5, "dry_base": 1.2, "dry_allowed_length": 3}, history=repeating)
case({"dry_multiplier": 0.8, "dry_allowed_length": 4}, history=repeating)
case({"dry_multiplier": 0.8, "dry_last_n": 8}, history=repeating)
case({"dry_multiplier": 0.5, "dry_allowed_length": 1}, history=[2] * 9)
case({"dry_multiplier": 0.5}, history=[1, 2, 1, 2, 1, 2, 1])
case({"logit_bias": [[3, 5.0], [0, -100.0]]})
for version in (1, 2):
    for tau in (0.5, 1.0, 2.0, 5.0):
        case({"mirostat": version, "mirostat_tau": tau}, n=40)
case({"top_k": 8, "top_p": 0.9, "min_p": 0.05, "temperature": 0.7, "repeat_penalty": 1.1},
     history=history)
case({"top_n_sigma": 1.5, "typical_p": 0.9, "top_p": 0.8, "temperature": 1.3,
      "frequency_penalty": 0.2}, n=30, history=history)
case({"top_k": 20, "typical_p": 0.7, "min_p": 0.1, "xtc_probability": 1.0, "xtc_threshold": 0.05,
      "temperature": 0.9, "dynatemp_range": 0.4}, n=60, scale=1.0)
case({"top_k": 5, "top_p": 0.95, "min_p": 0.05, "temperature": 0.8}, n=400)

print("[")
print(",\n".join(json.dumps(c) for c in CASES))
print("]")
