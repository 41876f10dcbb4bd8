//! What an actor needs and a node has.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Amounts; the same type is a need, a capacity and a free rest. Fractions are thousandths, so sums are exact.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Thousandths of a CPU.
    pub cpu_milli: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Thousandths of a GPU.
    pub gpu_milli: u64,
    /// Resources that only their users know, in thousandths.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub custom: BTreeMap<String, u64>,
}

impl Resources {
    /// The first thing `self` has too little of for `need`, in words; `None` when it fits.
    pub fn lacks(&self, need: &Resources) -> Option<String> {
        if need.cpu_milli > self.cpu_milli {
            return Some(format!("needs cpus={}, {} free", milli(need.cpu_milli), milli(self.cpu_milli)));
        }
        if need.gpu_milli > self.gpu_milli {
            return Some(format!("needs gpus={}, {} free", milli(need.gpu_milli), milli(self.gpu_milli)));
        }
        if need.memory_bytes > self.memory_bytes {
            return Some(format!("needs memory={} MiB, {} MiB free", need.memory_bytes >> 20, self.memory_bytes >> 20));
        }
        for (name, amount) in &need.custom {
            let free = self.custom.get(name).copied().unwrap_or(0);
            if *amount > free {
                return Some(format!("needs {name}={}, {} free", milli(*amount), milli(free)));
            }
        }
        None
    }

    /// Takes `need` away; callers have asked [`Self::lacks`] before.
    pub fn take(&mut self, need: &Resources) {
        self.cpu_milli = self.cpu_milli.saturating_sub(need.cpu_milli);
        self.gpu_milli = self.gpu_milli.saturating_sub(need.gpu_milli);
        self.memory_bytes = self.memory_bytes.saturating_sub(need.memory_bytes);
        for (name, amount) in &need.custom {
            if let Some(free) = self.custom.get_mut(name) {
                *free = free.saturating_sub(*amount);
            }
        }
    }

    /// Gives `need` back.
    pub fn put_back(&mut self, need: &Resources) {
        self.cpu_milli += need.cpu_milli;
        self.gpu_milli += need.gpu_milli;
        self.memory_bytes += need.memory_bytes;
        for (name, amount) in &need.custom {
            *self.custom.entry(name.clone()).or_default() += amount;
        }
    }
}

fn milli(amount: u64) -> String {
    let text = format!("{:.3}", amount as f64 / 1000.0);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lacks_names_the_first_shortage() {
        let node = Resources { cpu_milli: 1500, ..Resources::default() };
        assert_eq!(node.lacks(&Resources { cpu_milli: 1500, ..Default::default() }), None);
        assert_eq!(node.lacks(&Resources { cpu_milli: 2000, ..Default::default() }).unwrap(), "needs cpus=2, 1.5 free");
        assert_eq!(node.lacks(&Resources { gpu_milli: 500, ..Default::default() }).unwrap(), "needs gpus=0.5, 0 free");
    }
}
