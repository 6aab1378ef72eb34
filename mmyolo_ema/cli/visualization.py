"""Drawing the predictions of a test, by the hook that the config's toolbox has for it."""

from inspect import signature
from typing import Any, Optional

from mmengine.config import Config
from mmengine.registry import HOOKS

from mmyolo_ema.building import scope_of

__all__ = ['draw_predictions']

# What the hooks call it: MMDetection and MMSegmentation first, then MMPreTrain.
_SWITCHES, _FOLDERS = ('draw', 'enable'), ('test_out_dir', 'out_dir')


def draw_predictions(cfg: Config, show: bool, wait_time: float, folder: Optional[str]) -> None:
    """Switches the drawing of all predictions on, in a config.

    Args:
        cfg: The config; its ``default_hooks.visualization`` is changed, and its ``visualizer`` where the hook takes no
            folder.
        show: Whether to show them in a window.
        wait_time: Seconds between two.
        folder: Where to draw them. None: where the visualizer does.

    Raises:
        ValueError: If the config has no such hook, or one that cannot be told to draw.
    """
    hook = (cfg.get('default_hooks') or {}).get('visualization')
    if not hook:
        raise ValueError("they need a default_hooks.visualization in the config, such as MMDetection's "
                         "dict(type='DetVisualizationHook')")
    taken = _options(hook, scope_of(cfg))
    switch = next((name for name in _SWITCHES if name in taken), None)
    if switch is None:
        raise ValueError(f'default_hooks.visualization of the config is {hook.get("type")}, which has no option '
                         f'{" or ".join(_SWITCHES)} to switch it on')
    wanted = dict(show=show, interval=1, wait_time=wait_time)
    takes_all = any(option.kind is option.VAR_KEYWORD for option in taken.values())
    hook.update({switch: True}, **{name: value for name, value in wanted.items() if takes_all or name in taken})
    if folder is not None:
        _set_folder(cfg, hook, next((name for name in _FOLDERS if name in taken), None), folder)


def _options(hook: dict[str, Any], scope: str) -> Any:
    kind = hook.get('type')
    if isinstance(kind, str):
        with HOOKS.switch_scope_and_registry(scope) as registry:
            kind = registry.get(kind)
    if kind is None:
        raise ValueError(f'default_hooks.visualization of the config is {hook.get("type")}, which is not known in the '
                         f'scope {scope}')
    return signature(kind).parameters


def _set_folder(cfg: Config, hook: dict[str, Any], option: Optional[str], folder: str) -> None:
    if option is not None:
        hook[option] = folder
    elif (cfg.get('visualizer') or {}).get('vis_backends'):
        cfg.visualizer.save_dir = folder
    else:
        raise ValueError(f'{hook["type"]} draws by the vis_backends of the visualizer, and the config names none')
