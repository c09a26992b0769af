#!/bin/sh
# SentencePiece 0.2.3: user-defined symbols are not matched longest first by `unigram` as they are by `bpe`,
# and one with a space inside is matched by neither.
#
# With the symbols "aa", "aaa" and "b c":
#   "xaaaay"  bpe: ▁x aaa ay     unigram: ▁x aa aa y
#   "xb cy"   bpe: ▁xb ▁cy        unigram: ▁x b ▁cy      though "b c" is in the vocabulary
#
# Fails if a later version behaves otherwise. Needs Python 3.11+ and pip.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check sentencepiece==0.2.3
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import io
import sentencepiece

print("sentencepiece", sentencepiece.__version__)
lines = [f"word{i} xaay xaaaay and b c or xb cy" for i in range(300)]
found = {}
for kind in ("bpe", "unigram"):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type=kind, vocab_size=60,
        hard_vocab_limit=False, user_defined_symbols=["aa", "aaa", "b c"], minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    found[kind] = {text: processor.encode(text, out_type=str) for text in ("xaaaay", "xb cy")}
    print(kind, found[kind], "| in the vocabulary:", [p for p in pieces if p in ("aa", "aaa", "b c", "b▁c")])
longest = {kind: "aaa" in each["xaaaay"] for kind, each in found.items()}
whole = [p for each in found.values() for p in each["xb cy"] if p in ("b c", "b▁c")]
assert longest == {"bpe": True, "unigram": False}, longest
assert not whole, whole
PYTHON
