from pathlib import Path

from setuptools import find_packages, setup

VERSION = next(
    line.split('"')[1]
    for line in Path("waveglow_jax/__init__.py").read_text(encoding="utf-8").splitlines()
    if line.startswith("__version__")
)

TEST = ["pytest>=8", "pytest-xdist>=3.6"]
EVAL = [
    *("pesq>=0.0.4", "pystoi>=0.4.1"),
    *("visqol-python[lattice]>=3.8", "speechmos>=0.0.1.1", "onnxruntime>=1.20"),
]
HUB = ["huggingface_hub>=1"]
WANDB = ["wandb>=0.19"]
EXPORT = ["flatbuffers>=24"]
ONNX = ["jax2onnx>=0.17,<0.18", "onnxruntime>=1.20"]

setup(
    name="waveglow-jax",
    version=VERSION,
    description="WaveGlow in JAX/Flax: exact, fast, proven",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["waveglow_jax*"]),
    package_data={
        "waveglow_jax": [
            *("assets/voice/*", "assets/voice/recordings/*"),
            *("lab/*.html", "lab/listening_test/*.html"),
        ]
    },
    install_requires=[
        "jax>=0.10,<0.11",
        "flax>=0.12,<0.13",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.11.36,<0.13",  # the oldest is what jax2onnx allows
        "grain>=0.2.18,<0.3",
        "numpy>=2",
        "absl-py>=2",
        "filelock>=3.12",  # JAX bounds its folder of compiled programs with it
        "librosa>=0.11",
        "soundfile>=0.13",
        "soxr>=0.5",
        "safetensors>=0.6",
        "tensorboardX>=2.6.4",
        "matplotlib>=3.10",
        "tqdm>=4.66",
    ],
    extras_require={
        "hub": HUB,
        "wandb": WANDB,
        "export": EXPORT,
        "onnx": ONNX,
        "eval": EVAL,
        "cuda": ["jax[cuda12]>=0.10,<0.11"],
        "tpu-preflight": ["jax[tpu]>=0.10,<0.11"],
        "gpu-preflight": ["jax[cuda12]>=0.10,<0.11"],
        "tpu": ["jax[tpu]>=0.10,<0.11"],
        "test": TEST,
        "dev": [*TEST, *HUB, *EXPORT, "playwright>=1.50", "ruff>=0.14"],
    },
    entry_points={"console_scripts": ["waveglow-jax=waveglow_jax.cli:main"]},
)
