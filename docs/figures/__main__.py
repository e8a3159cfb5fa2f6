"""Draw the figures of the documentation: docs/NAME.png by the module NAME of this folder.

python docs/figures
"""

from importlib import import_module
from pathlib import Path

for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
    picture = path.parents[1] / f"{path.stem}.png"
    import_module(path.stem).draw().savefig(picture, dpi=80)
    print(picture)
