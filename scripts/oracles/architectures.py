#!/usr/bin/env python3
"""Tiny random models of every architecture, and their logits by llama.cpp.

    python3 scripts/oracles/architectures.py [NAME ...]

Writes llm/tests/data/arch/NAME.head, a GGUF file by the `gguf` package up to its tensor data, and
NAME.json:

    {"bytes": length of the whole file, "tokens": [prompt], "rows": [positions],
     "logits": [[of every row]]}

The data of the tensors is not committed: a value depends on the tensor's name and its place alone
(`values` below), and llm/tests/common/random.rs computes it again. Every special feature of an
architecture is on, and strong enough that the logits without it differ: windows are shorter than the
prompt, caps bite, frequencies are stretched.

llama.cpp runs with caches of f32 and without flash attention. Needs gguf 0.19.0, numpy, and
llama-cpp-python 0.3.36 (LLAMA_CPP_LIB_PATH names a folder with its libraries if they are elsewhere).
"""

import ctypes
import json
import pathlib
import sys
import tempfile

import gguf
import llama_cpp as cpp
import numpy as np

OUT = pathlib.Path(__file__).resolve().parents[2] / "llm/tests/data/arch"
VOCAB = 40
PROMPT = [1, 17, 5, 30, 22, 9, 33, 12, 28, 4, 39, 17, 5, 8, 21, 36, 3, 14, 25, 31, 6, 19]
ROWS = [0, 3, 9, 15, len(PROMPT) - 1]
LAYERS, EMBD, FF, CONTEXT = 3, 64, 96, 64


def values(name, count):
    """Uniform in [-1, 1): splitmix64 of the place, begun at FNV-1a of the name."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 % 2**64
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float32) / np.float32(2**23) - np.float32(1)


def weights(name, shape):
    """The tensor: norms near one, factors from 1 to 4, matrices that keep activations near one."""
    v = values(name, int(np.prod(shape))).reshape(shape)
    if "norm" in name:
        return 1 + np.float32(0.25) * v
    if name.startswith("rope"):
        return np.float32(2.5) + np.float32(1.5) * v
    if name.endswith("bias"):
        return np.float32(0.5) * v
    if name.startswith("token_embd"):
        return v
    return np.float32(1.5) / np.sqrt(np.float32(shape[-1])) * v


class Model:
    """A model under construction: keys and tensors."""

    def __init__(self, path, arch, heads=4, kv_heads=2, head=16, **keys):
        self.w = gguf.GGUFWriter(path, arch)
        self.arch, self.heads, self.kv_heads, self.head = arch, heads, kv_heads, head
        keys = {
            "block_count": LAYERS,
            "context_length": CONTEXT,
            "embedding_length": EMBD,
            "feed_forward_length": FF,
            "attention.head_count": heads,
            "attention.head_count_kv": kv_heads,
            "attention.key_length": head,
            "attention.value_length": head,
            "rope.dimension_count": head,
            "rope.freq_base": 100.0,
            "attention.layer_norm_rms_epsilon": 1e-5,
        } | {k.replace("__", "."): v for k, v in keys.items()}
        self.layers, self.keys = keys["block_count"], keys
        for key, value in keys.items():
            self.key(key, value)
        tokens = ["<unk>", "<s>", "</s>"] + [chr(0x61 + i) for i in range(VOCAB - 3)]
        self.w.add_tokenizer_model("llama")
        self.w.add_token_list(tokens)
        self.w.add_token_scores([0.0] * VOCAB)
        self.w.add_token_types([2, 3, 3] + [1] * (VOCAB - 3))
        self.tensor("token_embd.weight", VOCAB, EMBD)
        self.tensor("output_norm.weight", EMBD)

    def key(self, key, value):
        add = {bool: self.w.add_bool, int: self.w.add_uint32, float: self.w.add_float32,
               str: self.w.add_string, list: self.w.add_array}[type(value)]
        add(f"{self.arch}.{key}", value)

    def tensor(self, name, *shape, dtype=np.float32):
        self.w.add_tensor(name, weights(name, shape).astype(dtype))

    def blocks(self, layers=None, dtype=np.float32, **shapes):
        """A tensor of every block; a name's `__` is a dot."""
        for i in range(self.layers) if layers is None else layers:
            for name, shape in shapes.items():
                shape = (shape,) if isinstance(shape, int) else shape
                name = name.replace("__", ".")
                name += "" if name.endswith("bias") else ".weight"
                self.tensor(f"blk.{i}.{name}", *shape, dtype=dtype if len(shape) > 1 else np.float32)

    def head_tensor(self):
        self.tensor("output.weight", VOCAB, EMBD)

    def attention(self, bias=False, **more):
        q, kv = self.heads * self.head, self.kv_heads * self.head
        self.blocks(attn_norm=EMBD, attn_q=(q, EMBD), attn_k=(kv, EMBD), attn_v=(kv, EMBD),
                    attn_output=(EMBD, q), ffn_norm=EMBD, **more)
        if bias:
            self.blocks(attn_q__bias=q, attn_k__bias=kv, attn_v__bias=kv)

    def ffn(self, layers=None, dtype=np.float32):
        self.blocks(layers, dtype, ffn_gate=(FF, EMBD), ffn_up=(FF, EMBD), ffn_down=(EMBD, FF))

    def experts(self, n, ff, layers=None, shared=0, **more):
        self.blocks(layers, ffn_gate_inp=(n, EMBD), ffn_gate_exps=(n, ff, EMBD),
                    ffn_up_exps=(n, ff, EMBD), ffn_down_exps=(n, EMBD, ff), **more)
        if shared:
            self.blocks(layers, ffn_gate_shexp=(shared, EMBD), ffn_up_shexp=(shared, EMBD),
                        ffn_down_shexp=(EMBD, shared))


def llama(path, freqs=False, dtype=np.float32, **keys):
    m = Model(path, "llama", **keys)
    m.attention()
    m.ffn(dtype=dtype)
    m.head_tensor()
    if freqs:
        m.tensor("rope_freqs.weight", 8)
    return m


def llama_experts(path):
    m = Model(path, "llama", expert_count=6, expert_used_count=2)
    m.attention()
    m.experts(6, FF)
    m.head_tensor()
    return m


def qwen2(path, **keys):
    m = Model(path, "qwen2", **keys)
    m.attention(bias=True)
    m.ffn()
    return m


def qwen2moe(path):
    m = Model(path, "qwen2moe", expert_count=6, expert_used_count=3,
              expert_feed_forward_length=32, expert_shared_feed_forward_length=48)
    m.attention(bias=True)
    m.experts(6, 32, shared=48, ffn_gate_inp_shexp=EMBD)
    m.head_tensor()
    return m


def qwen3(path):
    m = Model(path, "qwen3", head=24)
    m.attention(attn_q_norm=24, attn_k_norm=24)
    m.ffn()
    return m


def qwen3moe(path):
    m = Model(path, "qwen3moe", expert_count=8, expert_used_count=3, expert_feed_forward_length=32)
    m.attention(attn_q_norm=16, attn_k_norm=16)
    m.experts(8, 32)
    m.head_tensor()
    return m


def gemma(path):
    m = Model(path, "gemma", head=24)
    m.attention()
    m.ffn()
    return m


def gemma2(path):
    m = Model(path, "gemma2", head=24, attention__sliding_window=7, attn_logit_softcapping=2.0,
              final_logit_softcapping=4.0)
    m.attention(post_attention_norm=EMBD, post_ffw_norm=EMBD)
    m.ffn()
    return m


def gemma3(path, layers=7, **keys):
    m = Model(path, "gemma3", block_count=layers, head=24, attention__sliding_window=6, **keys)
    m.attention(post_attention_norm=EMBD, post_ffw_norm=EMBD, attn_q_norm=24, attn_k_norm=24)
    m.ffn()
    return m


def phi3(path, original):
    # 12 of 16 elements are turned; the long factors serve contexts beyond the original one.
    m = Model(path, "phi3", rope__dimension_count=12, rope__scaling__attn_factor=1.25,
              rope__scaling__original_context_length=original)
    m.blocks(attn_norm=EMBD, attn_qkv=(64 + 2 * 32, EMBD), attn_output=(EMBD, 64), ffn_norm=EMBD,
             ffn_up=(2 * FF, EMBD), ffn_down=(EMBD, FF))
    m.tensor("rope_factors_long.weight", 6)
    m.tensor("rope_factors_short.weight", 6)
    m.head_tensor()
    return m


def deepseek2(path, q_rank, split, **keys):
    """Heads of 24 = 16 + 8 turned, values of 12, latent of 32; the first layer dense."""
    heads, rank, turned, nope, value = 4, 32, 8, 16, 12
    key = {"attention.key_length": nope + turned, "attention.value_length": value}
    if split:
        key = {"attention.key_length": rank + turned, "attention.value_length": rank,
               "attention.key_length_mla": nope + turned, "attention.value_length_mla": value}
    m = Model(path, "deepseek2", heads=heads, kv_heads=1 if split else heads, **key,
              rope__dimension_count=turned, attention__q_lora_rank=q_rank,
              attention__kv_lora_rank=rank, leading_dense_block_count=1, expert_count=8,
              expert_used_count=3, expert_feed_forward_length=32, expert_shared_count=2, **keys)
    m.blocks(attn_norm=EMBD, ffn_norm=EMBD, attn_kv_a_mqa=(rank + turned, EMBD),
             attn_kv_a_norm=rank, attn_output=(EMBD, heads * value))
    q = heads * (nope + turned)
    if q_rank:
        m.blocks(attn_q_a=(q_rank, EMBD), attn_q_a_norm=q_rank, attn_q_b=(q, q_rank))
    else:
        m.blocks(attn_q=(q, EMBD))
    if split:
        m.blocks(attn_k_b=(heads, rank, nope), attn_v_b=(heads, value, rank))
    else:
        m.blocks(attn_kv_b=(heads * (nope + value), rank))
    m.ffn([0])
    m.experts(8, 32, layers=range(1, LAYERS), shared=64)
    if keys.get("expert_gating_func") == 2:
        m.blocks(range(1, LAYERS), exp_probs_b__bias=8)
    m.head_tensor()
    return m


YARN = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0,
        "rope__scaling__original_context_length": 16}

MODELS = {
    "llama": llama,
    "llama-f16": lambda p: llama(p, dtype=np.float16),
    "llama3": lambda p: llama(p, freqs=True),
    "llama-linear": lambda p: llama(p, rope__scaling__type="linear", rope__scaling__factor=4.0),
    "llama-yarn": lambda p: llama(p, **YARN),
    "mixtral": llama_experts,
    "qwen2": qwen2,
    "qwen2-yarn": lambda p: qwen2(p, **YARN),
    "qwen2moe": qwen2moe,
    "qwen3": qwen3,
    "qwen3moe": qwen3moe,
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3": lambda p: gemma3(p, rope__scaling__type="linear", rope__scaling__factor=8.0),
    "gemma3-capped": lambda p: gemma3(p, 3, final_logit_softcapping=4.0, rope__freq_base_swa=50.0,
                                      attention__sliding_window_pattern=2),
    "phi3-short": lambda p: phi3(p, 512),
    "phi3-long": lambda p: phi3(p, 32),
    "deepseek2-lite": lambda p: deepseek2(p, 0, False),
    "deepseek2-legacy": lambda p: deepseek2(p, 24, False, **YARN, expert_weights_scale=2.5,
                                            rope__scaling__yarn_log_multiplier=0.0707),
    "deepseek2": lambda p: deepseek2(p, 24, True, **YARN, expert_weights_scale=2.5,
                                     expert_weights_norm=True, expert_gating_func=2,
                                     rope__scaling__yarn_log_multiplier=0.1),
    "deepseek2-groups": lambda p: deepseek2(p, 0, True, expert_weights_norm=True,
                                            expert_gating_func=2, expert_group_count=4,
                                            expert_group_used_count=2),
}


def logits(path):
    params = cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    model = cpp.llama_model_load_from_file(str(path).encode(), params)
    assert model, path
    params = cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = CONTEXT
    params.n_threads = params.n_threads_batch = 2
    params.type_k = params.type_v = 0  # f32
    params.flash_attn_type = 0
    ctx = cpp.llama_init_from_model(model, params)
    assert ctx
    batch = cpp.llama_batch_init(len(PROMPT), 0, 1)
    batch.n_tokens = len(PROMPT)
    for i, token in enumerate(PROMPT):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
        batch.seq_id[i][0] = 0
    assert cpp.llama_decode(ctx, batch) == 0
    rows = [np.ctypeslib.as_array(cpp.llama_get_logits_ith(ctx, i), (VOCAB,)).copy() for i in ROWS]
    cpp.llama_batch_free(batch)
    cpp.llama_free(ctx)
    cpp.llama_model_free(model)
    return rows


@cpp.llama_log_callback
def quiet(level, text, _):
    if level == 4:
        sys.stderr.write(text.decode(errors="replace"))


def main():
    cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    cpp.llama_backend_init()
    OUT.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / f"{name}.gguf"
            model = MODELS[name](path)
            model.w.write_header_to_file()
            model.w.write_kv_data_to_file()
            model.w.write_tensors_to_file()
            model.w.close()
            rows = logits(path)
            start = gguf.GGUFReader(path).data_offset
            data = path.read_bytes()
        assert all(np.isfinite(row).all() for row in rows)
        (OUT / f"{name}.head").write_bytes(data[:start])
        text = [[float(f"{v:.6g}") for v in row] for row in rows]
        table = {"bytes": len(data), "tokens": PROMPT, "rows": ROWS,
                 "logits": text}
        (OUT / f"{name}.json").write_text(json.dumps(table, separators=(",", ":")) + "\n")
        print(name, start, "rms", float(np.sqrt(np.mean(np.square(rows)))))


if __name__ == "__main__":
    main()
