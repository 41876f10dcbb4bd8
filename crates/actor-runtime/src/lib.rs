//! Live actors on a worker: kameo, native and LLM agents, Python processes.
