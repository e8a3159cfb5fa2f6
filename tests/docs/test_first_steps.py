"""The notebook of first steps; it runs as a whole when the site is built."""

import json
from pathlib import Path

from d2_contrast import train
from d2_contrast.engine.run_folder import METRICS, prepare_folder

NOTEBOOK = Path(__file__).parents[2] / "docs/first_steps.ipynb"


def test_the_training_can_be_run_again(tmp_path, monkeypatch):
    sources = ["".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"]]
    (cell,) = (source for source in sources if "from d2_contrast.train import main" in source)

    def train_nothing(argv):
        args = train.parse_arguments(argv)
        options = dict(zip(args.opts[::2], args.opts[1::2], strict=True))
        prepare_folder(options["OUTPUT_DIR"], resume=args.resume, overwrite=args.overwrite)
        folder = Path(options["OUTPUT_DIR"])
        folder.mkdir(exist_ok=True)
        (folder / METRICS).write_text('{"iteration": 39, "total_loss": 1.0}\n')
        return 0

    monkeypatch.setattr(train, "main", train_nothing)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        exec(cell, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first_run", "first_run.old-1"]
