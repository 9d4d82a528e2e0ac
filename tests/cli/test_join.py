"""``bhfl join`` and ``bhfl serve``: what they refuse, and what a client makes of its orders."""

from contextlib import ExitStack
from functools import partial
from inspect import signature
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

from bhfl.cli.opener import open_run
from bhfl.cli.request import read_request
from bhfl.remote.messages import Hello
from bhfl.remote.resident import Open
from tests.cli.conftest import Command

CONFIG = {
    "seed_everything": 3,
    "clients": {"8": 1, "32": 1},
    "algorithm": {"class_path": "bhfl.algorithms.FedAvg"},
    "model": {"class_path": "bhfl.models.Classifier", "init_args": {"net": "mlp"}},
    "data": {"class_path": "bhfl.data.Digits", "init_args": {"batch_size": 16}},
    "trainer": {"max_rounds": 2, "threads": 1},
}
REQUIRED = ["--server", "127.0.0.1:1", "--key", "there"]


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--key", "there"], "server is missing: HOST:PORT"),
        (["--server", "127.0.0.1:1"], "key is missing: the folder of this client's key"),
        ([*REQUIRED, "--serve", "a"], "--serve is no option; did you mean 'server'?"),
        ([*REQUIRED, "--client", "-1"], "client must be an integer from 0 to"),
        ([*REQUIRED, "--config", "number.yaml"], "folder must be a path, got 2024"),
        ([*REQUIRED[:3], "1e3"], "keys: there is no file 1e3/ca.pem"),
        ([*REQUIRED, "--plain", "yes"], "--plain cannot be used: yes is read in different ways"),
        (["--server", "localhost", *REQUIRED[2:]], "server must be HOST:PORT, got 'localhost'"),
        (REQUIRED, "keys: there is no file there/ca.pem: `bhfl serve --make_keys` makes it"),
    ],
)
def test_join_refuses_what_cannot_be_used(bhfl: Command, args: list[str], problem: str) -> None:
    pytest.importorskip("flwr")
    Path("number.yaml").write_text("folder: 2024\n")
    done = bhfl("join", *args)
    assert (done.code, done.out) == (2, "")
    assert len(done.problems) == 1
    assert done.problems[0].startswith(problem)


def test_join_explains_itself(bhfl: Command) -> None:
    code, out, _ = bhfl("join", "--help")
    assert (code, out[:16]) == (0, "usage: bhfl join")


def test_serve_needs_one_process_and_keys(bhfl: Command) -> None:
    pytest.importorskip("flwr")
    done = bhfl("serve", "--config", "tiny.yaml", "--keys", "nowhere")
    assert done.code == 2
    assert done.problems == [
        "keys: there is no file nowhere/ca.pem: `bhfl serve --make_keys` makes it"
    ]
    made = bhfl("serve", "--config", "tiny.yaml", "--make_keys", "keys", "--host", "[a.example]")
    assert (made.code, made.out) == (0, "keys\n")
    assert len(list(Path("keys/clients").iterdir())) > 1
    done = bhfl("serve", "--config", "tiny.yaml", "--trainer.devices", "2")
    assert done.problems == ["trainer.devices must be 1 where clients are elsewhere, got 2"]
    done = bhfl("serve", "--config", "tiny.yaml", "--wait_for", "99")
    assert "wait_for must be at most" in done.problems[0]
    done = bhfl("serve", "--config", "tiny.yaml", "--clients", "{8: 1}")
    assert "make new ones by `bhfl serve --make_keys`" in done.problems[0]


def opener(*more: str) -> Open:
    return partial(open_run, read_request([*REQUIRED, *more]))


def hello(**changed: object) -> Hello:
    return Hello(run="a" * 32, config={**CONFIG, **changed}, backends={}, client=0)


def test_a_client_takes_the_servers_configuration_but_for_what_its_own_says(tmp_path: Path) -> None:
    own = ["--data.batch_size", "8", "--folder", str(tmp_path)]
    with ExitStack() as stack:
        session = opener(*own)(hello(), stack)
        assert session.settings.cohort.seed == 3
        assert [client.group for client in session.fleet] == ["int8", "float32"]
        assert session.data.batch_size == 8
        assert session.settings.output.logger is False
    # nothing of a run is written on a client's machine
    assert not list(tmp_path.iterdir())


def test_a_client_makes_no_class_of_a_package_that_it_does_not_allow() -> None:
    config = hello(algorithm={"class_path": "os_like.Thing"})
    with pytest.raises(ValueError, match=r"names os_like.Thing, and this client's `allow`"):
        opener()(config, ExitStack())
    with pytest.raises(ValueError, match="os_like"):
        opener("--allow", "[os_like]")(config, ExitStack())


EVIL = """
import pathlib
pathlib.Path("ran").touch()
from bhfl.algorithms import FedAvg as Alg
def collate(samples): return samples
"""


def given(**options: str) -> dict[str, object]:
    known = {"train": "bhfl.data.Digits", "test": "bhfl.data.Digits"}
    return {"data": {"class_path": "bhfl.data.FromDatasets", "init_args": {**known, **options}}}


@pytest.mark.parametrize(
    "changed",
    [
        {"algorithm": "evil_pkg.Alg"},
        {"model": "evil_pkg.Net"},
        given(train="evil_pkg.collate"),
        given(collate_fn="evil_pkg.collate"),
        given(collate_fn="os.system"),
        given(collate_fn="torch.os.system"),
    ],
)
def test_a_class_of_another_package_is_not_made_however_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, object]
) -> None:
    (tmp_path / "evil_pkg.py").write_text(EVIL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="this client's `allow` does not name the package of"):
        opener()(hello(**changed), ExitStack())
    assert not Path("ran").exists()


def test_a_server_names_no_program_to_be_started_where_any_value_may_stand(tmp_path: Path) -> None:
    told = dict.fromkeys(signature(SubprocessHandler).parameters)
    told |= {"entrypoint": "touch", "args": [str(tmp_path / "ran")], "env": {}, "local_rank_id": 0}
    program = f"{SubprocessHandler.__module__}.SubprocessHandler"
    kwargs = {"hidden": {"class_path": program, "init_args": told}}
    model = {**CONFIG["model"], "init_args": {"net": "mlp", "net_kwargs": kwargs}}
    with pytest.raises(ValueError, match="SubprocessHandler, which is no module, optimizer, sched"):
        opener()(hello(model=model), ExitStack())
    assert not (tmp_path / "ran").exists()


def test_a_client_names_its_own_classes_without_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("from bhfl.data import Digits\nclass Own(Digits): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    own = ["--data", "mine.Own", "--folder", str(tmp_path)]
    with ExitStack() as stack:
        assert type(opener(*own)(hello(), stack).data).__name__ == "Own"
