"""Config files: what they may contain, and the messages for what they may not."""

import dataclasses
import json
import re
import time
from pathlib import Path

import jax
import pytest
from golden import CASES

from waveglow_jax.config import (
    Config,
    DataConfig,
    MelWhitening,
    SynthesisConfig,
    TrainConfig,
    WaveGlowConfig,
    WNConfig,
    config_from_dict,
    config_to_dict,
    config_to_json,
    field_facts,
    load_config,
)
from waveglow_jax.config_data import MelConfig
from waveglow_jax.config_fields import Bounds
from waveglow_jax.config_train import AlteredMels
from waveglow_jax.conventions import HALF_HOP
from waveglow_jax.errors import UserError
from waveglow_jax.flow.waveglow import init
from waveglow_jax.presets import presets
from waveglow_jax.text import read_json

CONFIGS = Path(__file__).parent.parent / "configs"

ORIGINAL = """{
    "train_config": {
        "fp16_run": true,
        "output_directory": "checkpoints",
        "epochs": 100000,
        "learning_rate": 1e-4,
        "sigma": 1.0,
        "iters_per_checkpoint": 2000,
        "batch_size": 12,
        "seed": 1234,
        "checkpoint_path": "",
        "with_tensorboard": false
    },
    "data_config": {
        "training_files": "train_files.txt",
        "segment_length": 16000,
        "sampling_rate": 22050,
        "filter_length": 1024,
        "hop_length": 256,
        "win_length": 1024,
        "mel_fmin": 0.0,
        "mel_fmax": 8000.0
    },
    "dist_config": {
        "dist_backend": "nccl",
        "dist_url": "tcp://localhost:54321"
    },

    "waveglow_config": {
        "n_mel_channels": 80,
        "n_flows": 12,
        "n_group": 8,
        "n_early_every": 4,
        "n_early_size": 2,
        "WN_config": {
            "n_layers": 8,
            "n_channels": 256,
            "kernel_size": 3
        }
    }
}
"""

# No field has its default, so that a field that is not written or not read is noticed.
UNUSUAL = Config(
    waveglow=WaveGlowConfig(
        n_mel_channels=40,
        n_flows=6,
        n_group=16,
        n_early_every=3,
        n_early_size=4,
        upsample_kernel=480,
        alternating_halves=True,
        conditioning="group",
        mel_whitening=MelWhitening(block=32, floor=0.01),
        WN_config=WNConfig(n_layers=5, n_channels=48, n_skip_channels=24, kernel_size=5),
    ),
    data=DataConfig(
        training_files="clips/é.txt",
        segment_length=4800,
        sampling_rate=16000,
        filter_length=800,
        hop_length=160,
        win_length=640,
        mel_fmin=50.0,
        mel_fmax=7600.0,
        mel=MelConfig(
            scale="htk",
            norm="none",
            power=2,
            frames=HALF_HOP,
            epsilon=1e-9,
            emphasis=0.5,
            log="log10",
            gain=2.0,
            offset=1.0,
            floor=1e-6,
            ceiling=100.0,
        ),
    ),
    train=TrainConfig(
        seed=7,
        steps=10,
        epochs=3,
        batch_size=2,
        learning_rate=3e-4,
        warmup_steps=4,
        decay_start=0.25,
        final_learning_rate=1e-6,
        plateau_patience=5,
        plateau_learning_rate=2e-5,
        sigma=0.7,
        gradient_clip=1.5,
        ema_decay=0.99,
        wn_dtype="bfloat16",
        checkpoint_flows=True,
        gradient_accumulation=2,
        noise_std=0.002,
        final_noise_std=0.0005,
        altered_mels=AlteredMels(
            probability=0.75,
            smoothing_frames=1.5,
            smoothing_bands=0.5,
            dropout_frames=3,
            dropout_bands=6,
            jitter=0.1,
        ),
        num_workers=2,
        validation_files="held_out.txt",
        validation_fraction=0.02,
        validation_clips=8,
        iters_per_validation=100,
        iters_per_checkpoint=50,
        keep_checkpoints=1,
        on_save_failure="continue",
        synthesis_clips=1,
        synthesis_sigmas=(0.5, 0.9),
        wandb_project="voices",
    ),
    synthesis=SynthesisConfig(sigma=0.9, consistency=32, bandwidth=8000.0),
    description="python train.py this.json",
)


def leaves(config):
    flat = {}

    def walk(value, where):
        if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                walk(getattr(value, field.name), (*where, field.name))
        else:
            flat[where] = value

    walk(config, ())
    return flat


def test_the_unusual_config_differs_everywhere():
    usual = leaves(dataclasses.replace(Config(), waveglow=WaveGlowConfig(mel_whitening=None)))
    same = [name for name, value in leaves(UNUSUAL).items() if usual.get(name) == value]
    assert same == []


@pytest.mark.parametrize("config", [Config(), UNUSUAL], ids=["defaults", "unusual"])
def test_round_trip(config, tmp_path):
    assert config_from_dict(config_to_dict(config)) == config
    text = config_to_json(config)
    assert text.endswith("}\n")
    assert config_from_dict(json.loads(text)) == config
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    assert load_config(path) == load_config(str(path)) == config
    assert set(json.loads(text)) == {
        "description",
        "waveglow_config",
        "data_config",
        "train_config",
        "synthesis_config",
    }


def test_reading_leaves_the_dictionary_alone():
    raw = json.loads(ORIGINAL)
    config_from_dict(raw, {"train.batch_size": 3})
    assert raw == json.loads(ORIGINAL)


def test_the_originals_own_file_loads(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(ORIGINAL)
    config = load_config(path)
    assert config.waveglow == WaveGlowConfig()
    assert config.waveglow.WN == WNConfig(n_layers=8, n_channels=256, kernel_size=3)
    assert config.waveglow.WN.skip_channels == 256
    assert config.data == DataConfig(training_files="train_files.txt")
    assert config.train == TrainConfig(epochs=100_000, batch_size=12, wn_dtype="bfloat16")
    full_precision = json.loads(ORIGINAL)
    full_precision["train_config"]["fp16_run"] = False
    assert config_from_dict(full_precision).train.wn_dtype == "float32"


def test_a_checkpoint_path_of_the_original_is_refused_not_ignored():
    raw = json.loads(ORIGINAL)
    raw["train_config"]["checkpoint_path"] = "checkpoints/waveglow_1000"
    with pytest.raises(UserError, match=r"checkpoint_path is not read.*--output"):
        config_from_dict(raw)


def test_hashable_and_equal_by_value():
    again = config_from_dict(config_to_dict(UNUSUAL))
    assert again is not UNUSUAL
    assert hash(again) == hash(UNUSUAL)
    assert len({Config(), Config(), UNUSUAL, again}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        again.waveglow.n_flows = 3


def test_channels_and_who_leaves_when():
    published = WaveGlowConfig()
    assert [published.channels(k) for k in range(12)] == [8] * 4 + [6] * 4 + [4] * 4
    assert [k for k in range(12) if published.leaves_before(k)] == [4, 8]
    assert [WaveGlowConfig(n_early_size=0).channels(k) for k in (0, 11)] == [8, 8]
    assert Config().clip_frames == 63
    assert config_from_dict({"data_config": {"segment_length": 16384}}).clip_frames == 65


W, D, T, S = "waveglow_config", "data_config", "train_config", "synthesis_config"
IMPOSSIBLE = [
    # What the file says, and what the message must name: the fields and both numbers.
    ({W: {"n_group": 6, "conditioning": "group"}}, ["n_group 6", "hop_length 256", '"sample"']),
    ({W: {"n_group": 16}, D: {"segment_length": 15}}, ["n_group", "16", "segment_length 15"]),
    ({W: {"n_group": 7}}, ["n_group 7", "even"]),
    ({W: {"n_early_size": 3}}, ["n_early_size 3", "even"]),
    ({W: {"n_early_size": -2}}, ["n_early_size -2", "0"]),
    ({W: {"n_early_size": 4}}, ["8 channels leave", "n_group is 8", "n_early_every 4"]),
    ({W: {"n_early_every": 2}}, ["10 channels leave", "n_group is 8", "n_early_size 2"]),
    ({W: {"n_early_every": 0}}, ["n_early_every 0", "at least 1"]),
    ({W: {"n_flows": 0}}, ["n_flows 0", "at least 1"]),
    ({W: {"n_mel_channels": 0}}, ["n_mel_channels 0", "at least 1"]),
    ({W: {"upsample_kernel": 255}}, ["upsample_kernel 255", "hop_length 256"]),
    (
        {W: {"upsample_kernel": 1020, "conditioning": "group"}},
        ["n_group 8", "upsample_kernel 1020"],
    ),
    ({W: {"conditioning": "frame"}}, ["conditioning 'frame'", "'sample' or 'group'"]),
    ({W: {"WN_config": {"kernel_size": 4}}}, ["WN_config.kernel_size 4", "odd"]),
    ({W: {"WN_config": {"n_layers": 0}}}, ["WN_config.n_layers 0", "at least 1"]),
    ({W: {"WN_config": {"n_skip_channels": -1}}}, ["n_skip_channels -1", "at least 0"]),
    # 16000 is no multiple of 256.
    (
        {
            W: {"mel_whitening": {"block": 256}},
            D: {"segment_length": 16384, "filter_length": 128, "win_length": 128},
        },
        ["block 256", "filter_length 128"],
    ),
    ({W: {"mel_whitening": {"block": 1}}}, ["block 1", "at least 2"]),
    ({W: {"mel_whitening": {"floor": 0.0}}}, ["floor 0.0", "above 0"]),
    ({D: {"win_length": 2048}}, ["win_length 2048", "filter_length 1024"]),
    ({D: {"mel_fmax": 12000.0}}, ["mel_fmax 12000", "11025 Hz"]),
    ({D: {"mel_fmin": 9000.0}}, ["mel_fmin 9000", "mel_fmax 8000"]),
    ({D: {"mel_fmin": -1.0}}, ["mel_fmin -1", "at least 0"]),
    ({D: {"hop_length": 0}}, ["hop_length 0", "at least 1"]),
    ({T: {"batch_size": 0}}, ["batch_size 0", "at least 1"]),
    ({T: {"seed": -1}}, ["seed -1", "at least 0"]),
    ({T: {"learning_rate": 0}}, ["learning_rate 0", "above 0"]),
    ({T: {"learning_rate": float("nan")}}, ["learning_rate nan", "above 0"]),
    ({T: {"noise_std": float("inf")}}, ["noise_std inf", "at least 0"]),
    ({T: {"sigma": -1.0}}, ["sigma -1.0", "above 0"]),
    ({T: {"synthesis_sigmas": [0.6, -1]}}, ["synthesis_sigmas[1] -1.0", "at least 0"]),
    ({T: {"ema_decay": 1.0}}, ["ema_decay 1.0", "below 1"]),
    ({T: {"decay_start": 1.0}}, ["decay_start 1.0", "below 1"]),
    ({T: {"wn_dtype": "float16"}}, ["wn_dtype 'float16'", "'bfloat16'"]),
    ({S: {"sigma": -0.1}}, ["synthesis_config.sigma -0.1", "at least 0"]),
    ({S: {"sigma": float("inf")}}, ["synthesis_config.sigma inf", "at least 0"]),
    ({T: {"synthesis_sigma": -1}}, ["synthesis_config.sigma -1.0", "at least 0"]),
    ({S: {"consistency": -1}}, ["synthesis_config.consistency -1", "at least 0"]),
    ({S: {"bandwidth": -1}}, ["synthesis_config.bandwidth -1", "at least 0"]),
    ({S: {"consistency": 10_001}}, ["synthesis_config.consistency 10001", "at most 10000"]),
    ({T: {"synthesis_sigmas": [1] * 101}}, ["synthesis_sigmas has 101 values", "be 100"]),
    ({W: {"n_mel_channels": 1024, "upsample_kernel": 4096}}, ["parameters", "2,147,483,648"]),
    ({W: {"WN_config": {"n_layers": 16}}}, ["6,291,360", "4,194,304", "n_layers 16"]),
    ({W: {"upsample_kernel": 2**18}}, ["upsample_kernel 262144", "64 times", "hop_length 256"]),
    (
        {D: {"hop_length": 8, "filter_length": 1024}, W: {"upsample_kernel": 512}},
        ["filter_length 1024", "64 times", "hop_length 8"],
    ),
    ({W: {"mel_whitening": {"order": 1}}}, ["order 1", "0 or at least 2"]),
    (
        {T: {"synthesis_sigma": 0.7}, S: {"sigma": 0.9}},
        ["synthesis_config.sigma 0.9", "take train_config.synthesis_sigma out", "sigma 0.7"],
    ),
]


@pytest.mark.parametrize(("raw", "says"), IMPOSSIBLE, ids=[" ".join(s) for _, s in IMPOSSIBLE])
def test_impossible_is_refused(raw, says):
    with pytest.raises(UserError) as refusal:
        config_from_dict(raw)
    message = str(refusal.value)
    assert "\n" not in message
    for part in says:
        assert part in message, message


NUMBERS = [
    name
    for name, value in [
        *((f"waveglow_config.{'.'.join(n)}", v) for n, v in leaves(UNUSUAL.waveglow).items()),
        *((f"data_config.{'.'.join(n)}", v) for n, v in leaves(UNUSUAL.data).items()),
        *((f"train_config.{'.'.join(n)}", v) for n, v in leaves(UNUSUAL.train).items()),
        *((f"synthesis_config.{n}", v) for (n,), v in leaves(UNUSUAL.synthesis).items()),
    ]
    if not isinstance(value, str | bool)
]


LIMITS = {facts.name.replace(".", "_config.", 1): facts.limit for facts in field_facts()}


@pytest.mark.parametrize("name", NUMBERS)
def test_no_number_is_without_bounds(name):
    """A file of any source must not hang its reader, nor end it by an error other than
    UserError."""
    is_list = name.endswith("sigmas")
    for value in (2**33, 1e30, 1e300, 2**70, 10**400, float("inf"), -(10**400)):
        began = time.monotonic()
        with pytest.raises(UserError, match=f"{re.escape(name)}.* must") as refusal:
            config_from_dict({}, {name: [value] if is_list else value})
        assert len(str(refusal.value)) < 200 and time.monotonic() - began < 1
    bounds = LIMITS[name]
    assert not bounds.hold(float("nan")) and bounds.low < bounds.high


def test_bounds_stand_beside_every_number():
    assert sorted(n for n, limit in LIMITS.items() if isinstance(limit, Bounds)) == sorted(NUMBERS)


def test_parameters_are_counted_before_they_are_made():
    changed = dataclasses.replace(UNUSUAL.waveglow, conditioning="sample", n_early_size=0)
    for config in (UNUSUAL, dataclasses.replace(UNUSUAL, waveglow=changed), Config()):
        shapes = jax.eval_shape(lambda config=config: init(jax.random.key(0), config))
        count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        assert config.waveglow.n_parameters == count


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({W: {"n_flow": 8}}, "waveglow_config.n_flow is no.*waveglow_config.n_flows"),
        ({W: {"WN_config": {"layers": 8}}}, "WN_config.layers is no.*WN_config.n_layers"),
        ({W: {"mel_whitening": {"blocks": 8}}}, "mel_whitening.blocks is no.*whitening.block"),
        ({D: {"sample_rate": 1}}, "data_config.sample_rate is no.*data_config.sampling_rate"),
        ({T: {"batchsize": 8}}, "train_config.batchsize is no.*train_config.batch_size"),
        ({"waveglow": {}}, "waveglow is no known field.*waveglow_config"),
        ({T: {"zzzz": 8}}, "train_config.zzzz is no known field"),
        ({T: {"segment_length": 8}}, "train_config.segment_length.*data_config.segment_length"),
        ({D: {"n_layers": 8}}, "data_config.n_layers.*waveglow_config.WN_config.n_layers"),
        ({W: {"block": 8}}, "waveglow_config.block.*waveglow_config.mel_whitening.block"),
        ({S: {"sigmas": 1}}, "synthesis_config.sigmas is no.*synthesis_config.sigma"),
        ({"synthesis": {}}, "synthesis is no known field.*synthesis_config"),
    ],
)
def test_unknown_fields_are_named(raw, says):
    with pytest.raises(UserError, match=says):
        config_from_dict(raw)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({W: {"n_flows": "12"}}, 'waveglow_config.n_flows is "12".*type int'),
        ({W: {"n_flows": 1.5}}, "waveglow_config.n_flows is 1.5.*type int"),
        ({W: {"n_flows": True}}, "waveglow_config.n_flows is true.*type int"),
        ({W: {"n_flows": None}}, "waveglow_config.n_flows is null.*type int"),
        ({D: {"mel_fmin": False}}, "data_config.mel_fmin is false.*type float"),
        ({D: {"training_files": ["a"]}}, 'training_files is \\["a"\\].*type str'),
        ({T: {"checkpoint_flows": 1}}, "checkpoint_flows is 1.*type bool"),
        ({T: {"synthesis_sigmas": 0.6}}, "synthesis_sigmas is 0.6.*list"),
        ({T: {"synthesis_sigmas": ["a"]}}, 'synthesis_sigmas\\[0\\] is "a".*type float'),
        ({T: {"synthesis_sigma": "a"}}, 'train_config.synthesis_sigma is "a".*type float'),
        ({T: {"synthesis_sigma": None}}, "train_config.synthesis_sigma is null.*type float"),
        ({S: {"sigma": "a"}}, 'synthesis_config.sigma is "a".*type float'),
        ({S: {"consistency": 1.5}}, "synthesis_config.consistency is 1.5.*type int"),
        ({S: {"consistency": True}}, "synthesis_config.consistency is true.*type int"),
        ({S: None}, "synthesis_config must be a JSON object"),
        ({S: 1, T: {"synthesis_sigma": 1}}, "synthesis_config must be a JSON object"),
        ({W: {"WN_config": 3}}, "WN_config must be a JSON object"),
        ({W: {"mel_whitening": 64}}, "mel_whitening must be a JSON object"),
        ({W: []}, "waveglow_config must be a JSON object"),
        ({T: "fast"}, "train_config must be a JSON object"),
        ({"description": 3}, "description must be a string"),
    ],
)
def test_wrong_types_are_named(raw, says):
    with pytest.raises(UserError, match=says):
        config_from_dict(raw)


def test_numbers_of_either_kind_are_read():
    config = config_from_dict({D: {"mel_fmax": 8000, "segment_length": 1.6e4}})
    assert config.data == DataConfig()
    assert type(config.data.mel_fmax) is float
    assert type(config.data.segment_length) is int


def test_overrides():
    raw = json.loads(ORIGINAL)
    config = config_from_dict(
        raw,
        {
            "train.batch_size": 3,
            "train_config.learning_rate": 6e-4,
            "waveglow.WN_config.n_layers": 4,
            "waveglow.mel_whitening.block": 16,
            "data.training_files": "mine.txt",
        },
    )
    assert config.train.batch_size == 3
    assert config.train.learning_rate == 6e-4
    assert config.waveglow.WN == WNConfig(n_layers=4)
    assert config.waveglow.mel_whitening == MelWhitening(block=16)
    assert config.data.training_files == "mine.txt"
    assert config_from_dict({}, {"train.steps": 5}) == Config(train=TrainConfig(steps=5))
    off = config_from_dict(config_to_dict(UNUSUAL), {"waveglow.mel_whitening": None})
    assert off.waveglow.mel_whitening is None


def test_the_synthesis_sections_bounds_are_allowed():
    for sigma, consistency in ((0.0, 0), (3.0, 10_000)):
        config = config_from_dict({S: {"sigma": sigma, "consistency": consistency}})
        assert config.synthesis == SynthesisConfig(sigma, consistency)


def test_synthesis_sigma_of_older_files_is_read():
    old = config_to_dict(UNUSUAL)
    sigma = old.pop(S)["sigma"]
    old[T]["synthesis_sigma"] = sigma
    config = config_from_dict(old)
    assert config == dataclasses.replace(UNUSUAL, synthesis=SynthesisConfig(sigma=sigma))
    assert "synthesis_sigma" not in config_to_dict(config)[T]
    both_alike = config_from_dict({T: {"synthesis_sigma": 1}, S: {"sigma": 1.0, "consistency": 2}})
    assert both_alike.synthesis == SynthesisConfig(sigma=1.0, consistency=2)
    assert config_from_dict({T: {"synthesis_sigma": 1}, S: {"consistency": 2}}) == both_alike


@pytest.mark.parametrize("said", [{}, {T: {"synthesis_sigma": 0.5}}, {S: {"sigma": 0.5}}])
@pytest.mark.parametrize(
    "name",
    [
        *("synthesis.sigma", "synthesis_config.sigma"),
        *("train.synthesis_sigma", "train_config.synthesis_sigma"),
    ],
)
def test_sigma_is_overridden_under_either_name(said, name):
    config = config_from_dict(said, {name: 0.8, "synthesis.consistency": 32})
    assert config.synthesis == SynthesisConfig(sigma=0.8, consistency=32)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("batch_size", 3, "--batch_size.*--train.batch_size"),
        ("train.batchsize", 3, "train_config.batchsize is no.*batch_size"),
        ("trian.batch_size", 3, "trian_config.batch_size is no.*train_config.batch_size"),
        ("train.batch_size.x", 3, "--train.batch_size.x: batch_size has no fields"),
        ("waveglow.n_group", 7, "n_group 7 is odd"),
        ("synthesis.consistency", "many", 'synthesis_config.consistency is "many".*type int'),
        ("train.synthesis_sigma", "low", 'synthesis_config.sigma is "low".*type float'),
    ],
)
def test_impossible_overrides(name, value, says):
    with pytest.raises(UserError, match=says):
        config_from_dict(json.loads(ORIGINAL), {name: value})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        ("{", "no valid JSON"),
        ('{"train_config": {"seed": 1,}}', "no valid JSON"),
        ("[1, 2]", "must hold a JSON object"),
        (b"\xff\xfe{}", "no valid JSON"),
        ('{"train_config": {"seeed": 1}}', "train_config.seeed is no known field"),
    ],
)
def test_bad_files_get_one_line_that_names_them(tmp_path, content, says):
    path = tmp_path / "a config.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as refusal:
        load_config(path)
    message = str(refusal.value)
    assert message.startswith(f"{path}: ")
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["bom.json", "utf16.json"])
def test_a_byte_order_mark_is_no_fault(name):
    raw = json.loads(
        (CASES / "12-config-bom" / name).read_text("utf-16" if "16" in name else "utf-8-sig")
    )
    assert load_config(CASES / "12-config-bom" / name) == config_from_dict(raw)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_json_in_every_encoding_that_says_what_it_is(tmp_path, encoding):
    text = (
        "\ufeff" if encoding == "utf-16-be" else ""
    ) + '{"description": "\u00e9\u2028\u6587"}\r\n'
    (tmp_path / "a.json").write_bytes(text.encode(encoding))
    assert read_json(tmp_path / "a.json") == {"description": "\u00e9\u2028\u6587"}
    assert load_config(tmp_path / "a.json").description == "\u00e9\u2028\u6587"


@pytest.mark.parametrize("encoding", ["latin-1", "gbk", "utf-16-le"])
def test_json_in_another_encoding_is_refused_with_the_remedy(tmp_path, encoding):
    (tmp_path / "a.json").write_bytes('{"description": "\u00e9"}'.encode(encoding))
    with pytest.raises(UserError, match=r"a\.json: .*save the file as UTF-8"):
        load_config(tmp_path / "a.json")


def test_a_folder_is_no_config(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        load_config(tmp_path)


def pytest_generate_tests(metafunc):
    if "preset" in metafunc.fixturenames:
        folder = Path(__file__).parents[1] / "configs"
        paths = sorted(folder.glob("*.json"))
        metafunc.parametrize("preset", paths, ids=[path.name for path in paths])


def test_presets(preset):
    config = load_config(preset)
    assert "python" in config.description or "waveglow-jax" in config.description
    assert "train" in config.description
    assert config_from_dict(json.loads(config_to_json(config))) == config


# ------------------------------------------------------------------------------ presets


def test_presets_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("tiny") == load_config(CONFIGS / "tiny.json")
    assert set(presets()) == {path.stem for path in CONFIGS.glob("*.json")}
    (tmp_path / "tiny").mkdir()  # a run's folder, perhaps
    assert load_config("tiny") == load_config(CONFIGS / "tiny.json")
    (tmp_path / "tiny").rmdir()
    (tmp_path / "tiny").write_text('{"description": "my own"}')
    assert load_config("tiny").description == "my own"


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("nvidia512", ["nvidia512: no config file", "nvidia256", "tiny"]),
        ("configs/nvidia256.json", ["no such file", "by its name, nvidia256"]),
        ("runs", ["no preset", "nvidia256"]),
        ("runs/a.json", ["runs/a.json: cannot be read"]),
    ],
)
def test_what_is_neither_file_nor_preset_is_told_their_names(tmp_path, monkeypatch, named, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError) as refused:
        load_config(named)
    for word in words:
        assert word in str(refused.value)
