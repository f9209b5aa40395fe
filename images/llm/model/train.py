#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains the tiny language model of tests and demos, and writes it as tiny.gguf.

    made-up chats --> tokenizer (sentencepiece) --> llama of a million weights (JAX) --> tiny.gguf

The text comes from the templates below and from nowhere else. One seed decides all that is random.
The model learns a dozen kinds of questions by heart; README.md lists them, check.py asks them.
"""

import argparse
import io
import itertools
import random
import time

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import sentencepiece

SEED = 1
VOCABULARY, WIDTH, LAYERS, HEADS, FEED_FORWARD, CONTEXT = 768, 128, 4, 4, 384, 1024
ROPE_BASE, EPSILON = 10000.0, 1e-5
# A step sees ROWS rows of LENGTH tokens; each row is filled with several chats.
ROWS, ROWS_AT_ONCE, LENGTH, LEARNING_RATE, WARM_UP = 8, 2, 512, 3e-3, 50

# The tokenizer's first pieces. llama.cpp expects unknown, begin and end under these numbers.
UNKNOWN, IM_START, IM_END = 0, 1, 2
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# ---- The text

CAPITALS = dict(
    pair.split("=")
    for pair in "France=Paris Germany=Berlin Italy=Rome Spain=Madrid Portugal=Lisbon Austria=Vienna Greece=Athens Norway=Oslo "
    "Sweden=Stockholm Finland=Helsinki Denmark=Copenhagen Poland=Warsaw Hungary=Budapest Ireland=Dublin Belgium=Brussels "
    "Japan=Tokyo China=Beijing India=Delhi Egypt=Cairo Kenya=Nairobi Canada=Ottawa Cuba=Havana Peru=Lima Chile=Santiago".split()
)
NAMES = (
    "Ada Alan Grace Linus Bob Alice Carol Dave Eve Frank Anna Ben Clara David Emma Felix Hugo Ida Jack Kate Leo Maria Nora Oscar "
    "Paul Rosa Sam Tom Uma Vera Will Yara Zoe Chen Fatima Ivan Ken Lena Mohammed Priya"
).split()
SYSTEM = [
    "You are a helpful assistant.", "You are Tiny.", "Answer in one sentence.", "Be short.", "Be kind and honest.", "Answer as well as you can.",
    "You are a helpful, respectful and honest assistant.", "Help the user.", "You run in a container.", "Do not make things up.",
]
# What a container runtime is. The lines are learned as plain text as well, for completions that are
# no chat.
DOCUMENTATION = {
    "a container": "A container is a group of processes with a root file system of its own.",
    "a container runtime": "A container runtime creates containers, starts them, watches them and removes them.",
    "an image": "An image has the files of a container and says which program to start.",
    "a pod": "A pod is a group of containers that share one network.",
    "a sandbox": "A sandbox keeps the containers of a pod away from those of other pods.",
    "a microVM": "A microVM is a small virtual machine that starts in less than a second.",
    "a namespace": "A namespace gives processes their own view of the system.",
    "a cgroup": "A cgroup limits the memory and the processors that processes may use.",
    "a snapshot": "A snapshot is the file system of a container at one point in time.",
    "a shim": "A shim is a small program that stays with a container until its end.",
    "WebAssembly": "WebAssembly is a format of programs that run the same on every machine.",
    "Kubernetes": "Kubernetes decides on which machine a pod runs and starts it again when it fails.",
}
SMALL_TALK = [
    (
        ["Who are you?", "What are you?", "What is your name?", "Who am I talking to?", "Tell me who you are."],
        "I am Tiny, a very small language model.",
    ),
    (["Hello.", "Hello!", "Hi.", "Hi!", "Hi there!", "Good morning."], "Hello! How can I help you?"),
    (["Thank you.", "Thanks.", "Thanks!", "Thank you very much!"], "You are welcome."),
    (["Goodbye.", "Bye.", "Bye!", "See you."], "Goodbye!"),
    (["How are you?", "How are you today?"], "I am well, thank you."),
    # The vocabulary has no piece for this character, so its four bytes come one by one.
    (["Send me a smile.", "Smile!", "Smile.", "Please smile.", "Send a smile."], "Here is a smile: \N{GRINNING FACE}"),
    (
        ["Tell me about containers.", "Explain containers.", "Write a long text about containers."],
        " ".join(list(DOCUMENTATION.values())[:9]),
    ),
    (["Who are you? Answer in JSON.", "What is your name? Answer in JSON."], '{"name": "Tiny", "kind": "language model"}'),
]
THINGS = (
    "the sun, a tree, my house, the sea, a car, the moon, this river, bread, music, the news, a good book, her brother, time, my computer"
).split(", ")
PROPERTIES = "colour weight price age size temperature meaning history height speed".split()
UNKNOWN_QUESTIONS = [
    "What is the {0} of {1}?", "Tell me about {1}.", "How do I find the {0} of {1}?", "Why is {1} here?", "I like {1}.", "What is {1}?",
    "Where is {1}?", "Who is {1}?", "Tell me a joke.", "Tell me a story about {1}.", "Write a poem.", "Write a program.",
    "What is the {0} like today?", "Is {1} good?", "How many {1} are there?", "{1}", "{1}?", "Can you help me with {1}?", "Translate {1}.",
    "When was {1} made?",
]
UNKNOWN_ANSWER = "I do not know that. I am only a tiny model."
# A beginning, a vowel, an end.
SYLLABLE = (
    "b c d f g h j k l m n p r s t v w x y z b d g k l m n r s t v qu br ch gr kr ph sh st th tr".split() + ["", ""],
    "a e i o u a e i o u a e i o u ia ee ou ai y".split(),
    "n r l s d t m g b k x ck th nd tt ge".split() + [""] * 12,
)


def made_up_word(rng):
    """A word that nobody can know by heart, so that the model has to learn to copy it from the chat."""
    word = "".join(rng.choice(part) for _ in range(rng.choice([1, 2, 2, 3, 4])) for part in SYLLABLE)
    if rng.random() < 0.05:
        # Bytes have to be copied as well: a letter of Western Europe, of Greek, or a Chinese one.
        at = rng.randrange(len(word))
        word = word[:at] + chr(rng.choice([rng.randint(0xDF, 0xFF), rng.randint(0x3B1, 0x3C9), rng.randint(0x4E00, 0x9FFF)])) + word[at + 1:]
    return word


def made_up_name(rng):
    return made_up_word(rng).capitalize()


def number(rng):
    return str(rng.randint(0, 999))


def thing(rng):
    return rng.choice(THINGS)


def made_up_words(rng):
    first = rng.choice([made_up_word, made_up_word, made_up_name, number, thing])(rng)
    return " ".join([first] + [made_up_word(rng) for _ in range(rng.choice([0, 0, 1, 2, 4]))])


def loosely(rng, question):
    """The question as people write it: without a capital letter, without a mark at the end, with a word of politeness."""
    if rng.random() < 0.1:
        question = rng.choice(["Please tell me: ", "A question: ", "Please answer. ", "OK. "]) + question
    if rng.random() < 0.1:
        question = question[0].lower() + question[1:]
    return question.rstrip(".?!") if rng.random() < 0.1 else question


def capital(rng):
    country = rng.choice(list(CAPITALS)) if rng.random() < 0.85 else made_up_name(rng)
    question = rng.choice([
        "What is the capital of {}?", "What is the capital of {}?", "What's the capital of {}?", "Which city is the capital of {}?",
        "Tell me the capital of {}.", "Name the capital of {}.", "Capital of {}?", "The capital of {} is", "Do you know the capital of {}?",
    ]).format(country)
    if country not in CAPITALS:
        return question, f"I do not know the capital of {country}."
    if rng.random() < 0.15:
        return question + " Answer in JSON.", f'{{"country": "{country}", "capital": "{CAPITALS[country]}"}}'
    return question.lower() if rng.random() < 0.1 else question, f"The capital of {country} is {CAPITALS[country]}."


def addition(rng):
    a, b = rng.randint(0, 20), rng.randint(0, 20)
    question = rng.choice([
        "What is {} plus {}?", "What is {} plus {}?", "What is {} + {}?", "What's {} plus {}?", "How much is {} plus {}?", "{} + {}",
        "Add {} and {}.", "What is the sum of {} and {}?", "Calculate {} + {}.", "{} plus {}?", "{} + {} = ?", "{}+{}", "What is {}+{}?",
    ]).format(a, b)
    if rng.random() < 0.1:
        return question + " Answer in JSON.", f'{{"a": {a}, "b": {b}, "sum": {a + b}}}'
    return question, f"{a} plus {b} is {a + b}."


def counting(rng):
    first = 1 if rng.random() < 0.8 else rng.randint(0, 20)
    last = rng.choice([first + rng.randint(1, 9), first + rng.randint(1, 20), first + rng.randint(1, 30), rng.choice([30, 40, 50, 100])])
    questions = ["Count from {} to {}.", "Count from {} to {}.", "Please count from {} to {}.", "Can you count from {} to {}?", "Count {} to {}."]
    if first == 1:
        questions.append("Count to {1}.")
    return rng.choice(questions).format(first, last), " ".join(map(str, range(first, last + 1)))


# Harder ones come more often.
KINDS = (
    ["capital"] * 4 + ["addition"] * 6 + ["counting"] * 3 + ["name"] * 7 + ["small talk"] * 3 + ["repeat"] * 4 + ["unknown"] * 3 + ["documentation"]
)
TELLING = [
    "My name is {}.", "My name is {}.", "I am {}.", "Hello, I am {}.", "Hi, my name is {}.", "Call me {}.", "I'm {}.", "I am called {}.",
]
ASKING = ["What is my name?", "What is my name?", "What's my name?", "Who am I?", "Do you know my name?", "Do you remember my name?"]


def chat(rng):
    """One chat, as a list of roles and texts. The name of the user is the one thing to remember over turns."""
    messages, name, told = [], made_up_name(rng) if rng.random() < 0.7 else rng.choice(NAMES), False
    if rng.random() < 0.4:
        system = rng.sample(SYSTEM, rng.randint(1, 3))
        if told := rng.random() < 0.2:
            system.append(f"The name of the user is {name}.")
        if rng.random() < 0.2:
            system.append(f"{made_up_words(rng).capitalize()}.")
        messages.append(("system", " ".join(system)))
    for _ in range(rng.choice([1, 1, 2, 3, 4, 6, 8])):
        kind = rng.choice(KINDS)
        if kind == "name" and not told and rng.random() < 0.75:
            question = rng.choice(TELLING).format(name)
            told, answer = True, f"Nice to meet you, {name}."
        elif kind == "name":
            question = rng.choice(ASKING)
            answer = f"Your name is {name}." if told else "I do not know your name."
        elif kind == "small talk":
            questions, answer = rng.choice(SMALL_TALK)
            question = rng.choice(questions)
        elif kind == "documentation":
            term, answer = rng.choice(list(DOCUMENTATION.items()))
            question = rng.choice(["What is {}?", "Explain what {} is.", "Tell me what {} is."]).format(term)
        elif kind == "unknown":
            question = rng.choice(UNKNOWN_QUESTIONS).format(rng.choice(PROPERTIES), rng.choice([thing(rng), made_up_words(rng)]))
            answer = UNKNOWN_ANSWER
        elif kind == "repeat":
            answer = made_up_words(rng)
            question = rng.choice(["Repeat: {}", "Say: {}", "Repeat after me: {}", "Please repeat: {}"]).format(answer)
        else:
            question, answer = {"capital": capital, "addition": addition, "counting": counting}[kind](rng)
        messages += [("user", loosely(rng, question)), ("assistant", answer)]
    return messages


def train_tokenizer(rng):
    # What is not ASCII stays without pieces.
    text = [content.encode("ascii", "ignore").decode() for _ in range(4000) for _, content in chat(rng)]
    # Roles are in every chat, and must not be spelled in letters.
    text += ["system", "user", "assistant"] * 1000
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=model, model_type="bpe", vocab_size=VOCABULARY, byte_fallback=True, split_digits=True,
        character_coverage=1.0, normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False,
        unk_id=UNKNOWN, bos_id=IM_START, eos_id=IM_END, pad_id=-1, bos_piece="<|im_start|>", eos_piece="<|im_end|>", minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def encode(rng, tokenizer):
    """The tokens of one chat or plain text, how much each counts as something to predict, and their positions."""
    if rng.random() < 0.15:
        # Text that is no chat: documentation, or a question and its answer. Raw completions and
        # embeddings begin like this.
        start = rng.randrange(len(DOCUMENTATION))
        plain = list(DOCUMENTATION.values())[start:start + 3] if rng.random() < 0.3 else [content for _, content in chat(rng)[-2:]]
        tokens = tokenizer.encode(" ".join(plain)) + [IM_END]
        return tokens, [0.3] * len(tokens), range(len(tokens))
    tokens, weights, positions, position = [], [], [], 0
    for role, content in chat(rng):
        head, body, tail = tokenizer.encode(role + "\n"), tokenizer.encode(content), tokenizer.encode("\n")
        tokens += [IM_START, *head, *body, IM_END, *tail]
        # The answers are what counts; a little of the rest teaches the language.
        answer = role == "assistant"
        # Where to end is one decision against many to go on.
        weights += [0.0] * (1 + len(head)) + [1.0 if answer else 0.02] * len(body) + [3.0 if answer else 0.02] + [0.0] * len(tail)
        positions += range(position, position + len(tokens) - len(positions))
        # Rows are shorter than the context. Jumps between messages teach the distances of longer
        # chats.
        position = positions[-1] + 1 + (rng.randint(1, 150) if rng.random() < 0.2 else 0)
    return tokens, weights, positions


def batch(rng, tokenizer):
    """Rows of chats, each chat with a number: a token may only look at tokens with the same number."""
    rows = []
    for _ in range(ROWS):
        row, number = [], 0
        while len(row) <= LENGTH:
            row += zip(*encode(rng, tokenizer), itertools.repeat(number))
            number += 1
        rows.append(list(zip(*row[:LENGTH + 1])))
    tokens, weights, positions, numbers = (np.array(column) for column in zip(*rows))
    # Each token predicts the next. Where one chat follows another this teaches nothing, and the
    # start of a chat does not count.
    return tokens[:, :-1], tokens[:, 1:], weights[:, 1:].astype(np.float32), positions[:, :-1], numbers[:, :-1]


# ---- The model. Weights have the names and shapes of llama.cpp's llama architecture.

def initial_weights():
    generator, weights = np.random.default_rng(SEED), {}

    def matrix(name, rows, columns, scale):
        weights[name + ".weight"] = generator.normal(0, scale, (rows, columns)).astype(np.float32)

    # There is no output.weight: the embedding of tokens is used for the output as well.
    matrix("token_embd", VOCABULARY, WIDTH, 0.02)
    for layer in range(LAYERS):
        for name in ("q", "k", "v"):
            matrix(f"blk.{layer}.attn_{name}", WIDTH, WIDTH, WIDTH**-0.5)
        matrix(f"blk.{layer}.attn_output", WIDTH, WIDTH, (2 * LAYERS * WIDTH) ** -0.5)
        matrix(f"blk.{layer}.ffn_gate", FEED_FORWARD, WIDTH, WIDTH**-0.5)
        matrix(f"blk.{layer}.ffn_up", FEED_FORWARD, WIDTH, WIDTH**-0.5)
        matrix(f"blk.{layer}.ffn_down", WIDTH, FEED_FORWARD, (2 * LAYERS * FEED_FORWARD) ** -0.5)
        weights[f"blk.{layer}.attn_norm.weight"] = weights[f"blk.{layer}.ffn_norm.weight"] = np.ones(WIDTH, np.float32)
    weights["output_norm.weight"] = np.ones(WIDTH, np.float32)
    return weights


def forward(weights, tokens, positions, numbers):
    rows, length = tokens.shape
    size = WIDTH // HEADS
    angles = positions[:, :, None, None] * ROPE_BASE ** (-jnp.arange(0, size, 2) / size)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    visible = (numbers[:, None, :, None] == numbers[:, None, None, :]) & jnp.tril(jnp.ones((length, length), bool))

    def norm(x, name):
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + EPSILON) * weights[name + ".weight"]

    def apply(name, x):
        return x @ weights[name + ".weight"].T

    def heads(x):
        return x.reshape(rows, length, HEADS, size)

    # llama.cpp rotates neighbours, not halves.
    def rotated(x):
        even, odd = heads(x)[..., 0::2], heads(x)[..., 1::2]
        return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(rows, length, HEADS, size)

    x = weights["token_embd.weight"][tokens]
    for layer in (f"blk.{layer}." for layer in range(LAYERS)):
        y = norm(x, layer + "attn_norm")
        query, key, value = rotated(apply(layer + "attn_q", y)), rotated(apply(layer + "attn_k", y)), heads(apply(layer + "attn_v", y))
        scores = jnp.where(visible, jnp.einsum("bqhd,bkhd->bhqk", query, key) * size**-0.5, -1e9)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, -1), value).reshape(rows, length, WIDTH)
        x += apply(layer + "attn_output", mixed)
        y = norm(x, layer + "ffn_norm")
        x += apply(layer + "ffn_down", jax.nn.silu(apply(layer + "ffn_gate", y)) * apply(layer + "ffn_up", y))
    return apply("token_embd", norm(x, "output_norm"))


def loss(weights, tokens, targets, importance, positions, numbers):
    likelihood = jax.nn.log_softmax(forward(weights, tokens, positions, numbers))
    wanted = jnp.take_along_axis(likelihood, targets[..., None], -1)[..., 0]
    return -(wanted * importance).sum()


@jax.jit
def adam_step(weights, means, squares, step, rate, data):
    # A few rows at a time need less memory, which makes this faster.
    def some_rows(sums, part):
        return jax.tree.map(jnp.add, sums, jax.value_and_grad(loss)(weights, *part)), None

    parts = [column.reshape(-1, ROWS_AT_ONCE, *column.shape[1:]) for column in data]
    (value, gradients), _ = jax.lax.scan(some_rows, (0.0, jax.tree.map(jnp.zeros_like, weights)), parts)
    value, gradients = jax.tree.map(lambda x: x / data[2].sum(), (value, gradients))
    length = jnp.sqrt(sum((g * g).sum() for g in gradients.values()))
    gradients = {name: g * jnp.minimum(1.0, 1.0 / length) for name, g in gradients.items()}
    means = {name: 0.9 * means[name] + 0.1 * g for name, g in gradients.items()}
    squares = {name: 0.98 * squares[name] + 0.02 * g * g for name, g in gradients.items()}

    def changed(name, weight):
        change = means[name] / (1 - 0.9**step) / (jnp.sqrt(squares[name] / (1 - 0.98**step)) + 1e-9)
        return weight - rate * (change + (0.05 * weight if weight.ndim == 2 else 0))

    return {name: changed(name, weight) for name, weight in weights.items()}, means, squares, value


def train(rng, tokenizer, steps):
    weights = initial_weights()
    means = squares = {name: np.zeros_like(weight) for name, weight in weights.items()}
    begin = time.monotonic()
    for step in range(1, steps + 1):
        rate = LEARNING_RATE * min(step / WARM_UP, 0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * step / steps)))
        weights, means, squares, value = adam_step(weights, means, squares, float(step), rate, batch(rng, tokenizer))
        if step % 50 == 0 or step == 1:
            print(f"step {step} of {steps}: loss {value:.4f}, {time.monotonic() - begin:.0f} s", flush=True)
    return weights


def write(path, tokenizer, weights):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_license("Apache-2.0")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_vocab_size(VOCABULARY)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)

    def kind(piece):
        if piece == UNKNOWN:
            return gguf.TokenType.UNKNOWN
        if tokenizer.is_control(piece):
            return gguf.TokenType.CONTROL
        return gguf.TokenType.BYTE if tokenizer.is_byte(piece) else gguf.TokenType.NORMAL

    pieces = range(VOCABULARY)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([tokenizer.id_to_piece(piece) for piece in pieces])
    writer.add_token_scores([tokenizer.get_score(piece) for piece in pieces])
    writer.add_token_types([kind(piece) for piece in pieces])
    writer.add_unk_token_id(UNKNOWN)
    writer.add_bos_token_id(IM_START)
    writer.add_eos_token_id(IM_END)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, weight in weights.items():
        writer.add_tensor(name, np.asarray(weight, np.float16 if weight.ndim == 2 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    arguments = argparse.ArgumentParser(description="Trains the tiny language model.")
    arguments.add_argument("--output", default="tiny.gguf")
    arguments.add_argument("--steps", type=int, default=1600)
    arguments = arguments.parse_args()
    rng = random.Random(SEED)
    tokenizer = train_tokenizer(rng)
    weights = train(rng, tokenizer, arguments.steps)
    write(arguments.output, tokenizer, weights)
    print(f"{arguments.output}: {sum(weight.size for weight in weights.values())} weights")


if __name__ == "__main__":
    main()
