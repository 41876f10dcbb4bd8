"""`ray.cloudpickle`: the cloudpickle package. A reference in what it pickles travels as one to a value in the store."""

from __future__ import annotations

from ..._cloudpickle import load_cloudpickle

_module = load_cloudpickle()
CloudPickler, Pickler = _module.CloudPickler, _module.Pickler
dump, dumps, load, loads = _module.dump, _module.dumps, _module.load, _module.loads
register_pickle_by_value, unregister_pickle_by_value = _module.register_pickle_by_value, _module.unregister_pickle_by_value

__all__ = ["CloudPickler", "Pickler", "dump", "dumps", "load", "loads", "register_pickle_by_value", "unregister_pickle_by_value"]
