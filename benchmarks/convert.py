"""The same weights in the formats of the peers: whisper-base as CTranslate2 holds it, written anew.

    python convert.py openai FOLDER TARGET.pt          openai-whisper; needs torch
    python convert.py hf FOLDER TARGET/                transformers: safetensors and its JSON files
    python convert.py ggml FOLDER TARGET.bin           whisper.cpp, 8 bit (q8_0)

``FOLDER`` holds ``model.bin``, ``config.json`` and ``tokenizer.json`` as faster-whisper wants them. Weights
go through unchanged (they are float16 in the file), but for ggml, whose matrices are rounded to 8 bits in
blocks of 32, as the tool of whisper.cpp does it.

Formats: CTranslate2 ``python/ctranslate2/specs/model_spec.py`` (version 6), whisper.cpp
``models/convert-pt-to-ggml.py`` and ``ggml/src/ggml-common.h`` (``block_q8_0``), safetensors' README.
"""

from __future__ import annotations

import json
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

Weights = dict[str, npt.NDArray[Any]]

_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def read_ctranslate2(path: Path) -> Weights:
    """All variables of a CTranslate2 model, by its own names."""
    weights: Weights = {}
    with path.open("rb") as file:
        version, spec, _, count = _number(file, "I"), _text(file), _number(file, "I"), _number(file, "I")
        if version != 6 or spec != "WhisperSpec":
            raise ValueError(f"{path} is no Whisper model of CTranslate2's version 6: {spec} {version}")
        for _ in range(count):
            name, rank = _text(file), _number(file, "B")
            shape = [_number(file, "I") for _ in range(rank)]
            dtype, size = _DTYPES[_number(file, "B")], _number(file, "I")
            weights[name] = np.frombuffer(file.read(size), dtype).reshape(shape)
    return weights


def openai_weights(folder: Path) -> Weights:
    """The weights under the names of openai/whisper, in its shapes."""
    return dict(_renamed(read_ctranslate2(folder / "model.bin")))


def _renamed(weights: Weights) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    parts = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
    for name, value in weights.items():
        if value.ndim == 0 or name.startswith("decoder/alignment"):
            continue
        *path, last = name.split("/")
        stack = path[0]
        if last == "encodings":
            yield f"{stack}.positional_embedding", value
        elif path[1].startswith("conv"):
            yield f"{stack}.{path[1]}.{last}", value
        elif path[1] == "embeddings":
            yield f"{stack}.token_embedding.weight", value
        elif path[1] == "layer_norm":
            yield f"{stack}.{'ln_post' if stack == 'encoder' else 'ln'}.{parts[last]}", value
        else:
            block = f"{stack}.blocks.{path[1].removeprefix('layer_')}"
            yield from _block(block, path[2], path[3], parts[last], value)


def _block(
    block: str, kind: str, part: str, last: str, value: npt.NDArray[Any]
) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    short = {"self_attention": "attn", "attention": "cross_attn", "ffn": "mlp"}[kind]
    if part == "layer_norm":
        yield f"{block}.{short}_ln.{last}", value
        return
    number = int(part.removeprefix("linear_"))
    if kind == "ffn":
        yield f"{block}.mlp.{2 * number}.{last}", value
        return
    # CTranslate2 fuses what shares an input: query, key and value; or, of cross attention, key and value.
    fused = {
        ("self_attention", 0): ("query", "key", "value"),
        ("attention", 1): ("key", "value"),
        ("attention", 0): ("query",),
    }.get((kind, number), ("out",))
    for name, piece in zip(fused, np.split(value, len(fused)), strict=True):
        if (name, last) != ("key", "bias"):  # Whisper's keys have none: CTranslate2 stores zeros
            yield f"{block}.{short}.{name}.{last}", piece


def dimensions(weights: Weights) -> dict[str, int]:
    """openai/whisper's ``ModelDimensions``."""
    vocabulary, width = weights["decoder.token_embedding.weight"].shape
    layers = [
        1 + max(int(m[1]) for m in (re.match(rf"{stack}\.blocks\.(\d+)\.", n) for n in weights) if m)
        for stack in ("encoder", "decoder")
    ]
    return {
        "n_mels": weights["encoder.conv1.weight"].shape[1],
        "n_audio_ctx": weights["encoder.positional_embedding"].shape[0],
        "n_audio_state": width,
        "n_audio_head": width // 64,  # 64 in all sizes of Whisper
        "n_audio_layer": layers[0],
        "n_vocab": vocabulary,
        "n_text_ctx": weights["decoder.positional_embedding"].shape[0],
        "n_text_state": width,
        "n_text_head": width // 64,
        "n_text_layer": layers[1],
    }


def write_openai(folder: Path, target: Path) -> None:
    """A checkpoint for ``whisper.load_model``."""
    import torch

    weights = openai_weights(folder)
    state = {name: torch.from_numpy(value.astype(np.float32)) for name, value in weights.items()}
    torch.save({"dims": dimensions(weights), "model_state_dict": state}, target)


# --- transformers

_HF = (
    (r"^(encoder|decoder)\.blocks\.", r"model.\1.layers."),
    (r"^(encoder|decoder)\.positional_embedding$", r"model.\1.embed_positions.weight"),
    (r"^decoder\.token_embedding\.", r"model.decoder.embed_tokens."),
    (r"^encoder\.ln_post\.|^decoder\.ln\.", None),
    (r"^encoder\.conv", r"model.encoder.conv"),
    (r"\.cross_attn_ln\.", ".encoder_attn_layer_norm."),
    (r"\.attn_ln\.", ".self_attn_layer_norm."),
    (r"\.mlp_ln\.", ".final_layer_norm."),
    (r"\.cross_attn\.", ".encoder_attn."),
    (r"\.attn\.", ".self_attn."),
    (r"\.query\.", ".q_proj."),
    (r"\.key\.", ".k_proj."),
    (r"\.value\.", ".v_proj."),
    (r"\.out\.", ".out_proj."),
    (r"\.mlp\.0\.", ".fc1."),
    (r"\.mlp\.2\.", ".fc2."),
)


def _hf_name(name: str) -> str:
    for pattern, new in _HF:
        name = re.sub(pattern, new or f"model.{name.split('.')[0]}.layer_norm.", name)
    return name


def write_hf(folder: Path, target: Path) -> None:
    """A folder for ``WhisperForConditionalGeneration.from_pretrained`` and ``WhisperProcessor``."""
    weights = openai_weights(folder)
    dims = dimensions(weights)
    config = json.loads((folder / "config.json").read_text())
    tokenizer = (folder / "tokenizer.json").read_text()
    special = {t["content"]: t["id"] for t in json.loads(tokenizer)["added_tokens"]}
    target.mkdir(parents=True)
    _write_safetensors({_hf_name(k): v.astype(np.float32) for k, v in weights.items()}, target)
    end, start = special["<|endoftext|>"], special["<|startoftranscript|>"]
    ids = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start}
    model = {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "d_model": dims["n_audio_state"],
        "encoder_layers": dims["n_audio_layer"],
        "decoder_layers": dims["n_text_layer"],
        "encoder_attention_heads": dims["n_audio_head"],
        "decoder_attention_heads": dims["n_text_head"],
        "encoder_ffn_dim": 4 * dims["n_audio_state"],
        "decoder_ffn_dim": 4 * dims["n_text_state"],
        "num_mel_bins": dims["n_mels"],
        "vocab_size": dims["n_vocab"],
        "max_source_positions": dims["n_audio_ctx"],
        "max_target_positions": dims["n_text_ctx"],
        **ids,
    }
    first, last = config["lang_ids"][0], config["lang_ids"][-1]
    generation = {
        **ids,
        "alignment_heads": config["alignment_heads"],
        "suppress_tokens": config["suppress_ids"],
        "begin_suppress_tokens": config["suppress_ids_begin"],
        "is_multilingual": True,
        "lang_to_id": {token: i for token, i in special.items() if first <= i <= last},
        "task_to_id": {"transcribe": special["<|transcribe|>"], "translate": special["<|translate|>"]},
        "no_timestamps_token_id": special["<|notimestamps|>"],
        "prev_sot_token_id": special["<|startofprev|>"],
        "max_initial_timestamp_index": 50,
        "max_length": dims["n_text_ctx"],
        "return_timestamps": False,
    }
    features = {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "WhisperProcessor",
        "feature_size": dims["n_mels"],
        "sampling_rate": 16_000,
        "hop_length": 160,
        "n_fft": 400,
        "chunk_length": 30,
        "n_samples": 480_000,
        "nb_max_frames": 3_000,
        "padding_value": 0.0,
        "return_attention_mask": False,
    }
    words = {
        "tokenizer_class": "WhisperTokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    (target / "tokenizer.json").write_text(tokenizer)
    for name, values in (
        ("config", model),
        ("generation_config", generation),
        ("preprocessor_config", features),
        ("tokenizer_config", words),
    ):
        (target / f"{name}.json").write_text(json.dumps(values, indent=1))


def _write_safetensors(weights: Weights, target: Path) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, value in weights.items():
        header[name] = {
            "dtype": "F32",
            "shape": value.shape,
            "data_offsets": [position, position + value.nbytes],
        }
        position += value.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (target / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for value in weights.values():
            file.write(np.ascontiguousarray(value).tobytes())


# --- whisper.cpp

_GGML_MAGIC, _GGML_F32, _GGML_F16, _GGML_Q8_0 = 0x67676D6C, 0, 1, 8
_GGML_FTYPE = 2 * 1_000 + 7  # version of the quantisation, "mostly q8_0"
_BLOCK = 32


def write_ggml(folder: Path, target: Path) -> None:
    """A file for whisper.cpp, its matrices in 8 bits."""
    weights = openai_weights(folder)
    dims = dimensions(weights)
    order = "n_vocab n_audio_ctx n_audio_state n_audio_head n_audio_layer n_text_ctx n_text_state n_text_head"
    values = [dims[name] for name in [*order.split(), "n_text_layer", "n_mels"]]
    filters = _mel_filters(dims["n_mels"])
    tokens = _token_bytes(folder)
    with target.open("wb") as file:
        file.write(struct.pack(f"<{len(values) + 2}i", _GGML_MAGIC, *values, _GGML_FTYPE))
        file.write(struct.pack("<2i", *filters.shape) + filters.tobytes())
        file.write(struct.pack("<i", len(tokens)))
        for token in tokens:
            file.write(struct.pack("<i", len(token)) + token)
        for name, value in weights.items():
            if re.fullmatch(r"encoder\.conv\d\.bias", name):
                value = value.reshape(-1, 1)
            kind, data = _ggml_data(name, value)
            label = name.encode()
            file.write(struct.pack("<3i", value.ndim, len(label), kind))
            file.write(struct.pack(f"<{value.ndim}i", *reversed(value.shape)) + label + data)


def _ggml_data(name: str, value: npt.NDArray[Any]) -> tuple[int, bytes]:
    if value.ndim < 2 or name.endswith((".positional_embedding", "conv1.bias", "conv2.bias")):
        return _GGML_F32, value.astype(np.float32).tobytes()
    if value.ndim > 2:
        return _GGML_F16, value.astype(np.float16).tobytes()
    blocks = value.astype(np.float32).reshape(-1, _BLOCK)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / 127
    rounded = np.round(np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale > 0))
    packed = np.empty(len(blocks), dtype=[("scale", "<f2"), ("values", "i1", (_BLOCK,))])
    packed["scale"], packed["values"] = scale[:, 0], rounded
    return _GGML_Q8_0, packed.tobytes()


def _mel_filters(bands: int) -> npt.NDArray[np.float32]:
    from faster_whisper.feature_extractor import FeatureExtractor

    filters = FeatureExtractor(feature_size=bands).mel_filters
    return np.ascontiguousarray(filters, dtype=np.float32)


def _token_bytes(folder: Path) -> list[bytes]:
    """Text of each token that is no special one, as bytes, in the order of their ids."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    special = re.compile(r"<\|.*\|>")
    # GPT-2's tokenizer writes bytes that do not print as letters further up in Unicode.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {chr(byte): byte for byte in printable}
    hidden = (byte for byte in range(256) if byte not in printable)
    letters |= {chr(256 + n): byte for n, byte in enumerate(hidden)}
    ordered = sorted((i, token) for token, i in vocabulary.items() if not special.fullmatch(token))
    return [bytes(letters[letter] for letter in token) for _, token in ordered]


def _number(file: BinaryIO, kind: str) -> int:
    return int(struct.unpack(f"<{kind}", file.read(struct.calcsize(kind)))[0])


def _text(file: BinaryIO) -> str:
    return file.read(_number(file, "H"))[:-1].decode()


_WRITERS = {"openai": write_openai, "hf": write_hf, "ggml": write_ggml}

if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in _WRITERS:
        sys.exit(__doc__)
    _WRITERS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
