//! What does not outlast a fork: neither the connection nor its threads are in the child, and locks may be held there by threads
//! that are not.

use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::{prelude::*, types::IntoPyDict as _};

/// Forks between the process that loaded this module and this one.
static FORKS: AtomicU64 = AtomicU64::new(0);

#[pyfunction]
fn count_fork() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// Counts forks from now on.
pub(crate) fn watch(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let count = [("after_in_child", wrap_pyfunction!(count_fork, module)?)].into_py_dict(py)?;
    py.import("os")?.call_method("register_at_fork", (), Some(&count))?;
    Ok(())
}

/// A value that is of use to the process it was made in alone. In a process forked from that one it is neither given nor dropped.
pub(crate) struct Own<T> {
    forks: u64,
    value: Option<T>,
}

impl<T> Own<T> {
    pub fn new(value: T) -> Self {
        Self { forks: FORKS.load(Ordering::Relaxed), value: Some(value) }
    }

    pub fn is_here(&self) -> bool {
        self.forks == FORKS.load(Ordering::Relaxed)
    }

    /// The value; `None` in a process that was forked from its own.
    pub fn get(&self) -> Option<&T> {
        self.value.as_ref().filter(|_| self.is_here())
    }

    /// The value, or what Python is told in a process that was forked from its own.
    pub fn here(&self, py: Python<'_>) -> PyResult<&T> {
        self.get().ok_or_else(|| refusal(py))
    }

    /// The same for good.
    pub fn into_here(mut self, py: Python<'_>) -> PyResult<T> {
        match self.value.take() {
            Some(value) if self.is_here() => Ok(value),
            other => {
                std::mem::forget(other);
                Err(refusal(py))
            }
        }
    }
}

impl<T> Drop for Own<T> {
    fn drop(&mut self) {
        if !self.is_here() {
            std::mem::forget(self.value.take());
        }
    }
}

fn refusal(py: Python<'_>) -> PyErr {
    let text = "this was begun before the process was forked: only the other process hears of it";
    let made = py.import("covey.errors").and_then(|errors| errors.getattr("FailedPrecondition")?.call1((text,)));
    made.map_or_else(|error| error, PyErr::from_value)
}
