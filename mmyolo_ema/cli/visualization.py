"""Drawing the predictions of a test, by the hook that the config's toolbox has for it."""

from inspect import signature
from typing import Any, Optional

from mmengine.config import Config
from mmengine.registry import HOOKS

from mmyolo_ema.building import scope_of

# What the hooks call it: MMDetection and MMSegmentation first, then MMPreTrain.
_SWITCHES, _FOLDERS = ('draw', 'enable'), ('test_out_dir', 'out_dir')


def draw_predictions(cfg: Config, show: bool, wait_time: float, folder: Optional[str]) -> None:
    """Switches the drawing of all predictions on, in a config: in a window, some seconds each, or into a folder.

    Raises:
        ValueError: If the config has no hook that can be told to draw, or none that can be told where.
    """
    hook: dict[str, Any] = (cfg.get('default_hooks') or {}).get('visualization') or {}
    kind = hook.get('type')
    if isinstance(kind, str):
        with HOOKS.switch_scope_and_registry(scope_of(cfg)) as registry:
            kind = registry.get(kind)
    taken = signature(kind).parameters if kind else {}
    switch, place = (next((name for name in names if name in taken), None) for names in (_SWITCHES, _FOLDERS))
    if switch is None:
        raise ValueError(
            "they need a default_hooks.visualization in the config, such as MMDetection's dict(type="
            f"'DetVisualizationHook'), with an option {' or '.join(_SWITCHES)}, but got {hook}"
        )
    wanted = dict(show=show, interval=1, wait_time=wait_time)
    takes_all = any(option.kind is option.VAR_KEYWORD for option in taken.values())
    hook.update({switch: True}, **{name: value for name, value in wanted.items() if takes_all or name in taken})
    if folder is None:
        return
    if place is not None:
        hook[place] = folder
    elif (cfg.get('visualizer') or {}).get('vis_backends'):
        cfg.visualizer.save_dir = folder
    else:
        raise ValueError(f'{hook["type"]} draws by the vis_backends of the visualizer, and the config names none')
