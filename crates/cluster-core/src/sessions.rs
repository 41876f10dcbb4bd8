//! Sessions: a driver of the cluster, and what lives for it.
//!
//! A session outlives its connection. While its driver is away (a broken network, a head that was started again) its
//! actors stay for [`HeadConfig::session_grace_ms`]; whoever shows the session's secret in that time goes on with it.
//! The secret itself is not known here: only its digest, which the store keeps too.
//!
//! ```text
//! open ─→ Connected ──unlinked──→ Away { until } ──tick past `until`──→ over: its actors end
//!             │  ↑                   │
//!             │  └──────open─────────┘
//!             └──left (the driver says so)──→ over
//! ```
//!
//! [`HeadConfig::session_grace_ms`]: crate::HeadConfig::session_grace_ms

use std::collections::BTreeMap;

use covey_domain::{ActorId, Digest, Error, ErrorKind, Millis, SessionId, caps};

use crate::{
    directory::{ActorState, Owner},
    head::{Head, Output, StoredActor, Write},
};

/// What came of [`Head::open_session`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionOpened {
    /// Nothing of this name was known.
    New,
    /// It goes on, with all that lives for it.
    Resumed,
}

#[derive(Debug)]
struct Session {
    /// Of the secret that resumes it.
    proof: Digest,
    link: Link,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    /// By this connection.
    Connected { conn: u64 },
    /// Its driver may come back until then.
    Away { until: Millis },
}

/// All sessions that are not over.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    all: BTreeMap<SessionId, Session>,
}

impl Sessions {
    pub fn contains(&self, id: &SessionId) -> bool {
        self.all.contains_key(id)
    }

    /// The head stood still for so long: nobody could come back meanwhile.
    pub fn extend(&mut self, by: Millis) {
        for session in self.all.values_mut() {
            if let Link::Away { until } = &mut session.link {
                *until += by;
            }
        }
    }
}

impl Head {
    /// A driver connects. `proof` is the digest of its secret: the first one names the session, later ones must be the
    /// same. A connection that the session still has counts no more: its driver has left it, whether that was seen here or not.
    pub fn open_session(&mut self, id: SessionId, proof: Digest, conn: u64) -> Result<SessionOpened, Error> {
        if let Some(known) = self.sessions.all.get_mut(&id) {
            if !covey_domain::secret::same(known.proof.as_str(), proof.as_str()) {
                let text = format!("session `{id}` belongs to another driver");
                return Err(Error::new(ErrorKind::PermissionDenied, text));
            }
            known.link = Link::Connected { conn };
            return Ok(SessionOpened::Resumed);
        }
        if self.sessions.all.len() >= caps::SESSIONS_MAX {
            let text = format!("{} drivers are connected", caps::SESSIONS_MAX);
            return Err(Error::new(ErrorKind::Overloaded, text));
        }
        self.out.push_back(Output::Write(Write::Session(id.clone(), Some(proof.clone()))));
        self.sessions.all.insert(id, Session { proof, link: Link::Connected { conn } });
        Ok(SessionOpened::New)
    }

    /// A driver's connection broke. Only the one that is current counts.
    pub fn session_unlinked(&mut self, id: &SessionId, conn: u64, now: Millis) {
        if let Some(session) = self.sessions.all.get_mut(id)
            && session.link == (Link::Connected { conn })
        {
            session.link = Link::Away { until: now + self.config.session_grace_ms };
        }
    }

    /// A driver leaves for good, and its actors end. Only the connection that is current counts.
    pub fn session_left(&mut self, id: &SessionId, conn: u64, now: Millis) {
        if self.sessions.all.get(id).is_some_and(|session| session.link == Link::Connected { conn }) {
            self.session_over(id, now);
            self.settle(now);
        }
    }

    /// Brings a session back from the store, before the first verb. Its driver has the grace time from when the workers have
    /// had theirs.
    pub fn restore_session(&mut self, id: SessionId, proof: Digest, now: Millis) {
        let until = now + self.config.lease_ms + self.config.session_grace_ms;
        self.sessions.all.insert(id, Session { proof, link: Link::Away { until } });
    }

    /// Brings an actor of a session back from the store, after all sessions.
    pub fn restore_owned(&mut self, id: ActorId, session: SessionId, stored: StoredActor, saved: bool, now: Millis) {
        if self.sessions.contains(&session) {
            self.restore_actor(id, stored, Owner::Session(session), saved, now);
        } else {
            // The machine lost its power between the two writes.
            self.out.push_back(Output::Write(Write::Owned(id, None)));
        }
    }

    /// Ends the sessions whose drivers did not come back.
    pub(crate) fn expire_sessions(&mut self, now: Millis) {
        let late = |session: &Session| matches!(session.link, Link::Away { until } if until <= now);
        let over: Vec<_> = self.sessions.all.iter().filter(|(_, s)| late(s)).map(|(id, _)| id.clone()).collect();
        for id in over {
            self.session_over(&id, now);
        }
    }

    fn session_over(&mut self, id: &SessionId, now: Millis) {
        self.sessions.all.remove(id);
        let owner = Owner::Session(id.clone());
        let alive = |state: &ActorState| !matches!(state, ActorState::Dead { .. });
        let actors = self.directory.actors.iter();
        let owned: Vec<_> =
            actors.filter(|(_, a)| a.owner == owner && alive(&a.state)).map(|(id, _)| id.clone()).collect();
        for actor in owned {
            self.end_actor(&actor, Error::new(ErrorKind::ActorDied, "its driver is gone"), false, now);
        }
        self.out.push_back(Output::Write(Write::Session(id.clone(), None)));
        self.out.push_back(Output::SessionOver(id.clone()));
    }

    /// Whoever makes something for a session must find it there: what is made for one that is over would stay for ever.
    pub(crate) fn check_owner(&self, owner: &Owner) -> Result<(), Error> {
        match owner {
            Owner::Session(id) if !self.sessions.contains(id) => {
                let text = format!("session `{id}` is over");
                Err(Error::new(ErrorKind::FailedPrecondition, text).hint("connect again, or make a detached actor"))
            }
            Owner::Session(_) | Owner::Detached | Owner::Pool | Owner::Virtual => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use covey_domain::{AgentSpec, Epoch, NodeId, Resources};
    use proptest::prelude::*;

    use super::*;
    use crate::{
        HeadConfig,
        head::{ActorReport, Command, CreateActor, Hello, LivingActor, Member},
    };

    const GRACE: Millis = 30_000;

    fn spec() -> AgentSpec {
        serde_json::from_str(r#"{"name":"a","kind":{"type":"native","implementation":"echo"}}"#).unwrap()
    }

    fn head() -> Head {
        let mut head = Head::new(HeadConfig { session_grace_ms: GRACE, ..HeadConfig::default() }, 1);
        head.register(spec(), 0).unwrap();
        head
    }

    fn proof(of: &str) -> Digest {
        Digest::of(of.as_bytes())
    }

    fn ask(id: &str, session: &str) -> CreateActor {
        CreateActor {
            id: id.into(),
            agent: "a".into(),
            name: Some(format!("name of {id}")),
            get_if_exists: false,
            owner: Owner::Session(session.into()),
            init: None,
            overrides: Default::default(),
            least: covey_domain::Isolation::None,
            keeps_labels: false,
        }
    }

    fn drain(head: &mut Head) -> Vec<Output> {
        std::iter::from_fn(|| head.poll_output()).collect()
    }

    fn alive(head: &Head, id: &str) -> bool {
        head.actor(&id.into()).is_ok_and(|info| info.state != "dead")
    }

    #[test]
    fn a_driver_that_is_away_for_less_than_the_grace_time_keeps_its_actors() {
        let mut head = head();
        let s: SessionId = "s".into();
        assert_eq!(head.open_session(s.clone(), proof("x"), 1), Ok(SessionOpened::New));
        head.create_actor(ask("actor-1", "s"), 0).unwrap();
        head.session_unlinked(&s, 1, 100);
        head.tick(100 + GRACE - 1);
        assert!(alive(&head, "actor-1"));
        assert_eq!(head.open_session(s.clone(), proof("x"), 2), Ok(SessionOpened::Resumed));
        head.tick(10 * GRACE);
        assert!(alive(&head, "actor-1"), "a driver that is here has no time to keep");
        // What is said of the connection before says nothing any more.
        head.session_unlinked(&s, 1, 10 * GRACE);
        head.session_left(&s, 1, 10 * GRACE);
        head.tick(20 * GRACE);
        assert!(alive(&head, "actor-1"));
        head.session_unlinked(&s, 2, 20 * GRACE);
        // A head that stood still gives its drivers that time, for they could not come back.
        head.tick(22 * GRACE);
        assert!(alive(&head, "actor-1"));
        for now in (22 * GRACE..=23 * GRACE).step_by(500) {
            head.tick(now);
        }
        assert!(!alive(&head, "actor-1"));
        assert!(drain(&mut head).iter().any(|o| matches!(o, Output::SessionOver(id) if *id == s)));
        assert_eq!(head.open_session(s, proof("x"), 3), Ok(SessionOpened::New));
    }

    #[test]
    fn nobody_goes_on_with_a_session_without_its_secret() {
        let mut head = head();
        head.open_session("s".into(), proof("x"), 1).unwrap();
        head.create_actor(ask("actor-1", "s"), 0).unwrap();
        let refused = head.open_session("s".into(), proof("y"), 2).unwrap_err();
        assert_eq!(refused.kind, ErrorKind::PermissionDenied);
        head.session_left(&"s".into(), 2, 0);
        assert!(alive(&head, "actor-1"), "who was refused ends nothing");
    }

    #[test]
    fn nothing_is_made_for_a_session_that_is_over() {
        let mut head = head();
        head.open_session("s".into(), proof("x"), 1).unwrap();
        head.session_left(&"s".into(), 1, 0);
        let refused = head.create_actor(ask("actor-1", "s"), 0).unwrap_err();
        assert_eq!(refused.kind, ErrorKind::FailedPrecondition);
    }

    #[test]
    fn the_same_request_for_an_actor_makes_one() {
        let mut head = head();
        head.open_session("s".into(), proof("x"), 1).unwrap();
        head.open_session("t".into(), proof("y"), 2).unwrap();
        assert!(head.create_actor(ask("actor-1", "s"), 0).unwrap().created);
        assert!(head.create_actor(ask("actor-1", "s"), 0).unwrap().created, "the answer is the one that was lost");
        let other = head.create_actor(ask("actor-1", "t"), 0).unwrap_err();
        assert_eq!(other.kind, ErrorKind::AlreadyExists);
    }

    /// What the store would bring back.
    #[derive(Default)]
    struct Disk {
        sessions: BTreeMap<SessionId, Digest>,
        actors: BTreeMap<ActorId, (SessionId, Arc<StoredActor>)>,
        lives: BTreeMap<ActorId, (NodeId, Epoch)>,
        members: BTreeMap<NodeId, Member>,
    }

    impl Disk {
        fn take(&mut self, outputs: &[Output]) {
            for output in outputs {
                match output {
                    Output::Write(Write::Session(id, Some(proof))) => {
                        self.sessions.insert(id.clone(), proof.clone());
                    }
                    Output::Write(Write::Session(id, None)) => drop(self.sessions.remove(id)),
                    Output::Write(Write::Owned(id, Some(owned))) => drop(self.actors.insert(id.clone(), owned.clone())),
                    Output::Write(Write::Owned(id, None)) => drop(self.actors.remove(id)),
                    Output::Write(Write::OwnedLife(id, Some(life))) => {
                        drop(self.lives.insert(id.clone(), life.clone()))
                    }
                    Output::Write(Write::OwnedLife(id, None)) => drop(self.lives.remove(id)),
                    Output::Write(Write::Member(id, Some(member))) => {
                        self.members.insert(id.clone(), member.clone());
                    }
                    Output::Write(Write::Member(id, None)) => drop(self.members.remove(id)),
                    _ => {}
                }
            }
        }

        fn restart(&self, now: Millis) -> Head {
            let mut head = head();
            head.set_term(2);
            for (id, member) in &self.members {
                head.restore_member(id.clone(), member.clone(), now);
            }
            for (id, (node, epoch)) in &self.lives {
                head.restore_activation(id.clone(), node.clone(), *epoch, now);
            }
            for (id, proof) in &self.sessions {
                head.restore_session(id.clone(), proof.clone(), now);
            }
            for (id, (session, actor)) in &self.actors {
                head.restore_owned(id.clone(), session.clone(), (**actor).clone(), false, now);
            }
            head
        }
    }

    fn hello(actors: Vec<LivingActor>) -> Hello {
        let total = Resources { cpu_milli: 8_000, ..Resources::default() };
        Hello { incarnation: 1, name: "w".into(), total, actors, ..Hello::default() }
    }

    #[test]
    fn a_head_that_was_started_again_knows_sessions_and_their_actors() {
        let (mut head, mut disk, node) = (head(), Disk::default(), NodeId::from("w"));
        head.joined(&node, 1, hello(vec![]), 0).unwrap();
        head.open_session("s".into(), proof("x"), 1).unwrap();
        head.create_actor(ask("actor-1", "s"), 0).unwrap();
        head.create_actor(ask("actor-2", "s"), 0).unwrap();
        head.stop_actor(&"actor-2".into(), false, 0).unwrap();
        let outputs = drain(&mut head);
        let epoch = outputs.iter().find_map(|o| match o {
            Output::Send(_, Command::Start { actor, epoch, .. }) if actor.as_str() == "actor-1" => Some(*epoch),
            _ => None,
        });
        let epoch: Epoch = epoch.expect("it was started");
        head.actor_report(&node, &"actor-1".into(), epoch, ActorReport::Live, 0);
        disk.take(&outputs);

        let mut head = disk.restart(1_000);
        assert!(head.actor_named("name of actor-1").is_ok());
        assert!(head.actor_named("name of actor-2").is_err());
        let living = LivingActor {
            actor: "actor-1".into(),
            epoch,
            agent: "a".into(),
            owner: Owner::Session("s".into()).as_text(),
            starting: false,
            said: None,
        };
        head.joined(&node, 2, hello(vec![living]), 1_500).unwrap();
        assert_eq!(head.actor(&"actor-1".into()).unwrap().state, "live");
        let outputs = drain(&mut head);
        assert!(!outputs.iter().any(|o| matches!(o, Output::Send(_, Command::Stop { .. } | Command::Start { .. }))));
        // Its worker goes on saying that it lives; its driver comes back in time.
        for now in (1_500..1_000 + GRACE).step_by(500) {
            assert!(head.heard(&node, 2, now));
            head.tick(now);
        }
        assert!(alive(&head, "actor-1"));
        assert_eq!(head.open_session("s".into(), proof("x"), 9), Ok(SessionOpened::Resumed));
        head.tick(10 * GRACE);
        assert!(alive(&head, "actor-1"));
    }

    #[test]
    fn an_actor_of_a_session_that_no_worker_brings_back_starts_anew() {
        let (mut head, mut disk) = (head(), Disk::default());
        head.open_session("s".into(), proof("x"), 1).unwrap();
        head.create_actor(ask("actor-1", "s"), 0).unwrap();
        disk.take(&drain(&mut head));
        let mut head = disk.restart(1_000);
        head.joined(&"w".into(), 1, hello(vec![]), 1_100).unwrap();
        head.tick(1_000);
        let started =
            |o: &Output| matches!(o, Output::Send(_, Command::Start { actor, .. }) if actor.as_str() == "actor-1");
        assert!(drain(&mut head).iter().any(started));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Open(u8, u8),
        Unlink(u8, u8),
        Leave(u8, u8),
        Create(u8),
        Wait(u16),
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        let (session, conn) = (0..3_u8, 0..6_u8);
        prop_oneof![
            (session.clone(), conn.clone()).prop_map(|(s, c)| Step::Open(s, c)),
            (session.clone(), conn.clone()).prop_map(|(s, c)| Step::Unlink(s, c)),
            (session.clone(), conn).prop_map(|(s, c)| Step::Leave(s, c)),
            session.prop_map(Step::Create),
            (0..40_000_u16).prop_map(Step::Wait),
            Just(Step::Restart),
        ]
    }

    proptest! {
        /// Whatever happens: no actor is without its session, no session that is away stays past its time, and what the store
        /// has is what the head knows.
        #[test]
        fn actors_live_exactly_as_long_as_their_session(steps in proptest::collection::vec(step(), 1..60)) {
            let (mut head, mut disk, mut now, mut made) = (head(), Disk::default(), 0, 0);
            for step in steps {
                let name = |s: u8| SessionId::from(format!("s{s}"));
                match step {
                    Step::Open(s, c) => drop(head.open_session(name(s), proof("x"), c.into())),
                    Step::Unlink(s, c) => head.session_unlinked(&name(s), c.into(), now),
                    Step::Leave(s, c) => head.session_left(&name(s), c.into(), now),
                    Step::Create(s) => {
                        made += 1;
                        let made = head.create_actor(ask(&format!("actor-{made}"), &format!("s{s}")), now);
                        prop_assert_eq!(made.is_ok(), head.sessions.contains(&name(s)));
                    }
                    Step::Wait(ms) => {
                        now += Millis::from(ms);
                        head.tick(now);
                    }
                    Step::Restart => {
                        disk.take(&drain(&mut head));
                        head = disk.restart(now);
                    }
                }
                disk.take(&drain(&mut head));
                let alive: Vec<_> = head.directory.actors.iter()
                    .filter(|(_, a)| !matches!(a.state, ActorState::Dead { .. })).collect();
                for (id, actor) in &alive {
                    let Owner::Session(session) = &actor.owner else { panic!("only sessions make actors here") };
                    prop_assert!(head.sessions.contains(session));
                    prop_assert!(disk.actors.contains_key(*id));
                }
                prop_assert_eq!(alive.len(), disk.actors.len());
                prop_assert_eq!(disk.sessions.keys().collect::<Vec<_>>(), head.sessions.all.keys().collect::<Vec<_>>());
                for session in head.sessions.all.values() {
                    if let Link::Away { until } = session.link {
                        prop_assert!(until <= now + GRACE + HeadConfig::default().lease_ms);
                    }
                }
            }
        }
    }
}
