//! Who listens to what. The head knows the listeners of each topic and tells publishers; messages go from publisher to
//! workers without it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use covey_domain::{ActorId, Error, ErrorKind, caps};
use hashbrown::HashMap;

use crate::{
    directory::{ActorState, Owner},
    head::{Head, Output, Write},
};

/// Actors that listen, and the method of each that is called.
pub type Members = Arc<[(ActorId, String)]>;

#[derive(Debug, Default)]
pub(crate) struct Topics {
    members: BTreeMap<String, BTreeMap<ActorId, String>>,
    of_actor: HashMap<ActorId, BTreeSet<String>>,
}

impl Head {
    /// Calls an actor's method with whatever is published to a topic from now on. One actor listens to a topic once.
    pub fn join_topic(&mut self, topic: &str, actor: &ActorId, method: &str) -> Result<(), Error> {
        if topic.is_empty() || topic.len() > caps::TOPIC_NAME_MAX || topic.chars().any(char::is_control) {
            let most = caps::TOPIC_NAME_MAX;
            return Err(Error::invalid(format!("a topic's name has 1 to {most} bytes, all printable")));
        }
        let known = self.directory.actors.get(actor).filter(|a| !matches!(a.state, ActorState::Dead { .. }));
        // A virtual actor may be asleep.
        let spec = match (known, actor.key()) {
            (Some(known), _) => known.spec.clone(),
            (None, Some((agent, _))) => self.agent(agent)?.clone(),
            (None, None) => return Err(Error::not_found("actor", actor)),
        };
        if !spec.skills.iter().any(|s| s.id == method) {
            let known: Vec<_> = spec.skills.iter().map(|s| s.id.as_str()).collect();
            return Err(Error::not_found("method", method).hint(format!("it has: {}", known.join(", "))));
        }
        let members = self.topics.members.entry(topic.to_owned()).or_default();
        if members.len() >= caps::TOPIC_MEMBERS_MAX && !members.contains_key(actor) {
            let text = format!("{} actors listen to topic `{topic}`", caps::TOPIC_MEMBERS_MAX);
            return Err(Error::new(ErrorKind::Overloaded, text));
        }
        let stored = |owner: &Owner| matches!(owner, Owner::Detached | Owner::Session(_));
        let lasting = actor.key().is_some() || known.is_some_and(|a| stored(&a.owner));
        if lasting {
            self.out.push_back(Output::Write(Write::Listener(topic.into(), actor.clone(), Some(method.into()))));
        }
        self.restore_listener(topic.to_owned(), actor.clone(), method.to_owned());
        self.tell_topic(topic);
        Ok(())
    }

    /// An actor does not listen any more. `false`: it did not.
    pub fn leave_topic(&mut self, topic: &str, actor: &ActorId) -> bool {
        let Some(members) = self.topics.members.get_mut(topic) else { return false };
        if members.remove(actor).is_none() {
            return false;
        }
        if members.is_empty() {
            self.topics.members.remove(topic);
        }
        if let Some(topics) = self.topics.of_actor.get_mut(actor) {
            topics.remove(topic);
            if topics.is_empty() {
                self.topics.of_actor.remove(actor);
            }
        }
        self.out.push_back(Output::Write(Write::Listener(topic.into(), actor.clone(), None)));
        self.tell_topic(topic);
        true
    }

    /// An actor is over for good.
    pub(crate) fn leave_topics(&mut self, actor: &ActorId) {
        for topic in self.topics.of_actor.get(actor).cloned().unwrap_or_default() {
            self.leave_topic(&topic, actor);
        }
    }

    /// Brings a listener back from the store, before the first verb.
    pub fn restore_listener(&mut self, topic: String, actor: ActorId, method: String) {
        self.topics.of_actor.entry(actor.clone()).or_default().insert(topic.clone());
        self.topics.members.entry(topic).or_default().insert(actor, method);
    }

    /// Topics and who listens to each.
    pub fn topics(&self) -> Vec<(String, Members)> {
        let all = self.topics.members.keys();
        all.map(|topic| (topic.clone(), self.members(topic))).collect()
    }

    fn members(&self, topic: &str) -> Members {
        let members = self.topics.members.get(topic).into_iter().flatten();
        members.map(|(actor, method)| (actor.clone(), method.clone())).collect()
    }

    fn tell_topic(&mut self, topic: &str) {
        let members = self.members(topic);
        self.out.push_back(Output::Topic(topic.to_owned(), members));
    }
}

#[cfg(test)]
mod tests {
    use covey_domain::{AgentSpec, Millis};

    use super::*;
    use crate::head::{CreateActor, HeadConfig};

    const NOW: Millis = 1;

    #[test]
    fn who_ends_listens_no_more_and_who_sleeps_does() {
        let mut head = Head::new(HeadConfig::default(), 1);
        let spec = r#"{"name":"a","kind":{"type":"native","implementation":"echo"},"skills":[{"id":"hear"}]}"#;
        head.register(serde_json::from_str::<AgentSpec>(spec).unwrap(), NOW).unwrap();
        head.open_session("s".into(), covey_domain::Digest::of(b"secret"), 1).unwrap();
        let (one, virtual_one) = (ActorId::from("actor-1"), ActorId::from("a/key"));
        let ask = CreateActor {
            id: one.clone(),
            agent: "a".into(),
            name: None,
            get_if_exists: false,
            owner: Owner::Session("s".into()),
            init: None,
            overrides: Default::default(),
            least: covey_domain::Isolation::None,
            keeps_labels: false,
        };
        head.create_actor(ask, NOW).unwrap();
        head.join_topic("news", &one, "hear").unwrap();
        head.join_topic("news", &virtual_one, "hear").unwrap();
        assert!(head.join_topic("news", &one, "nothing").is_err());
        assert!(head.join_topic("news", &"actor-9".into(), "hear").is_err());
        assert!(head.join_topic("", &one, "hear").is_err());
        let mut told = Vec::new();
        let mut kept = Vec::new();
        head.stop_actor(&one, false, NOW).unwrap();
        while let Some(output) = head.poll_output() {
            match output {
                Output::Topic(_, members) => told.push(members.len()),
                Output::Write(Write::Listener(_, actor, method)) => kept.push((actor, method.is_some())),
                _ => {}
            }
        }
        assert_eq!(told, [1, 2, 1]);
        assert_eq!(
            kept,
            [(one.clone(), true), (virtual_one.clone(), true), (one, false)],
            "what the store knows is kept"
        );
        assert_eq!(head.topics()[0].1.to_vec(), [(virtual_one.clone(), "hear".to_owned())]);
        assert!(head.leave_topic("news", &virtual_one) && !head.leave_topic("news", &virtual_one));
        assert!(head.topics().is_empty());
    }
}
