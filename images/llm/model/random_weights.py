# SPDX-License-Identifier: Apache-2.0
"""Makes a model of any size with random weights: for measuring, as it says nothing of sense.

    random_weights.py LIKE OUT [LAYERS [WIDTH]]

LIKE is a GGUF file of the llama architecture (tiny.gguf), whose tokenizer it takes. With 12 layers of
a width of 1024, the defaults, it has 150 million parameters and 160 MB as Q8_0.
"""

import sys

import numpy
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import quantize


def main(like, out, layers=12, width=1024):
    reader = GGUFReader(like)
    writer = GGUFWriter(out, "llama")
    for field in reader.fields.values():
        # What says how large the model is comes anew.
        if not field.name.startswith("tokenizer."):
            continue
        kind = field.types[0]
        if kind == GGUFValueType.ARRAY:
            writer.add_array(field.name, field.contents())
        else:
            writer.add_key_value(field.name, field.contents(), kind)
    vocabulary = len(reader.fields["tokenizer.ggml.tokens"].data)
    heads, feed = width // 64, width * 11 // 4 // 256 * 256
    writer.add_name("random")
    writer.add_context_length(4096)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(feed)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(64)
    writer.add_vocab_size(vocabulary)

    random = numpy.random.default_rng(1)

    def matrix(name, rows, columns):
        weights = random.standard_normal((rows, columns), dtype=numpy.float32) * columns**-0.5
        quantized = quantize(weights, GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, quantized, raw_dtype=GGMLQuantizationType.Q8_0)

    def norm(name):
        writer.add_tensor(name, numpy.ones(width, dtype=numpy.float32))

    matrix("token_embd.weight", vocabulary, width)
    norm("output_norm.weight")
    matrix("output.weight", vocabulary, width)
    for layer in range(layers):
        block = f"blk.{layer}."
        norm(block + "attn_norm.weight")
        norm(block + "ffn_norm.weight")
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"{block}{name}.weight", width, width)
        matrix(block + "ffn_gate.weight", feed, width)
        matrix(block + "ffn_up.weight", feed, width)
        matrix(block + "ffn_down.weight", width, feed)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
