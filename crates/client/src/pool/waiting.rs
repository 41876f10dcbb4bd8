//! Jobs of a pool that are not under way: what the pool's own turns wait for first, deepest first, then the rest in order.

use std::collections::VecDeque;

use super::Job;

/// Jobs that wait.
#[derive(Default)]
pub(super) struct Waiting {
    /// Jobs by the turn of the pool that waits for them, the newest turn last: trees are walked in depth, so that few turns
    /// wait at once. No group is empty.
    groups: Vec<(String, VecDeque<Job>)>,
    rest: VecDeque<Job>,
}

impl Waiting {
    /// Takes a new job.
    pub fn push(&mut self, job: Job) {
        match &job.parent {
            None => self.rest.push_back(job),
            Some((_, parent)) => match self.groups.iter_mut().rev().find(|(known, _)| known == parent) {
                Some((_, jobs)) => jobs.push_back(job),
                None => self.groups.push((parent.clone(), VecDeque::from([job]))),
            },
        }
    }

    /// Takes a job that was under way; it is the next.
    pub fn push_first(&mut self, job: Job) {
        match &job.parent {
            None => self.rest.push_front(job),
            Some((_, parent)) => self.groups.push((parent.clone(), VecDeque::from([job]))),
        }
    }

    /// The next job.
    pub fn pop(&mut self) -> Option<Job> {
        let Some((_, jobs)) = self.groups.last_mut() else { return self.rest.pop_front() };
        let job = jobs.pop_front();
        if jobs.is_empty() {
            self.groups.pop();
        }
        job
    }

    /// Takes a job out.
    pub fn remove(&mut self, id: u64) -> Option<Job> {
        if let Some(at) = self.rest.iter().position(|job| job.id == id) {
            return self.rest.remove(at);
        }
        let found = |(_, jobs): &(String, VecDeque<Job>)| jobs.iter().position(|job| job.id == id);
        let (group, at) = self.groups.iter().enumerate().find_map(|(i, group)| Some((i, found(group)?)))?;
        let job = self.groups[group].1.remove(at);
        if self.groups[group].1.is_empty() {
            self.groups.remove(group);
        }
        job
    }

    pub fn len(&self) -> usize {
        self.rest.len() + self.groups.iter().map(|(_, jobs)| jobs.len()).sum::<usize>()
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty() && self.groups.is_empty()
    }

    /// All of them.
    pub fn take(&mut self) -> Vec<Job> {
        let groups = std::mem::take(&mut self.groups);
        let nested = groups.into_iter().rev().flat_map(|(_, jobs)| jobs);
        nested.chain(std::mem::take(&mut self.rest)).collect()
    }
}
