//! Agents elsewhere: what their cards say of them, and what opens them.

use std::{path::PathBuf, sync::Arc, time::Duration};

use covey_a2a_client::{Agent, Options};
use covey_domain::{AgentKind, AgentName, AgentSpec, Error, Skill, agent::Pass, caps};
use serde::{Deserialize, Serialize};

use crate::{
    kept::Kept,
    keys::Keys,
    owner::{Handle, Input},
};

/// How often an agent that is not reached is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// What opens an agent at an address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Opens {
    url: String,
    pass: Pass,
}

/// What opens agents elsewhere.
#[derive(Debug)]
pub(crate) struct Passes(Kept<Opens>);

impl Passes {
    pub fn load(path: PathBuf) -> Result<Self, Error> {
        Kept::load(path).map(Self)
    }

    /// What opens the agent, if it is where it was when that was given: nobody else is told.
    pub fn of(&self, spec: &AgentSpec) -> Option<Pass> {
        let AgentKind::A2a(foreign) = &spec.kind else { return None };
        let all = self.0.read();
        all.get(spec.name.as_str()).filter(|opens| opens.url == foreign.url).map(|opens| opens.pass.clone())
    }

    /// Keeps what opens an agent elsewhere; nothing that is empty.
    pub fn keep(&self, spec: &AgentSpec, pass: Pass) -> Result<(), Error> {
        let AgentKind::A2a(foreign) = &spec.kind else { return Ok(()) };
        let opens = Opens { url: foreign.url.clone(), pass };
        self.0.change(|all| {
            match opens.pass.is_empty() {
                true => drop(all.remove(spec.name.as_str())),
                false => drop(all.insert(spec.name.to_string(), opens)),
            }
            Ok(())
        })
    }
}

/// The agent with what its card says, where the spec says nothing itself.
pub(crate) async fn described(mut spec: AgentSpec, pass: &Pass) -> Result<AgentSpec, Error> {
    let AgentKind::A2a(foreign) = &spec.kind else {
        return Err(Error::invalid(format!("agent `{}` is none elsewhere", spec.name)));
    };
    let agent = Agent::find(&Options::new(foreign, pass)).await?;
    let card = agent.card();
    if spec.name.as_str().is_empty() {
        spec.name = named(&card.name)?;
    }
    if spec.description.is_empty() {
        spec.description.clone_from(&card.description);
    }
    let streaming = card.capabilities.as_ref().and_then(|c| c.streaming).unwrap_or(false);
    // A lone `run` is what an agent has that says nothing of its skills.
    if spec.skills.iter().all(|skill| skill.id == "run") {
        // What is asked for no skill in particular goes there as it is.
        let run = Skill {
            id: "run".into(),
            name: "run".into(),
            description: spec.description.clone(),
            input_schema: None,
            streaming,
        };
        let own = card.skills.iter().map(|skill| Skill {
            id: skill.id.clone(),
            name: skill.name.clone(),
            description: skill.description.clone(),
            input_schema: None,
            streaming,
        });
        spec.skills = std::iter::once(run).chain(own.filter(|skill| skill.id != "run")).collect();
    }
    let (binding, version, url) = agent.face();
    tracing::info!(agent = %spec.name, ?binding, version, url, "an agent elsewhere was found");
    spec.validated()
}

/// A card's name as one of the cluster's.
fn named(name: &str) -> Result<AgentName, Error> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let words: Vec<_> = name.split(|c| !good(c)).filter(|word| !word.is_empty()).collect();
    let joined: String = words.join("-").chars().take(caps::AGENT_NAME_MAX).collect();
    let joined = joined.trim_matches(['.', '-']);
    if joined.is_empty() {
        return Err(Error::invalid(format!("the card's name `{name}` has no letters that are usable here"))
            .hint("give the agent a name"));
    }
    Ok(joined.into())
}

/// Looks for an agent that was declared until it is found, and tells the cluster what its card says.
pub(crate) async fn look_for(owner: Handle, keys: Arc<Keys>, spec: AgentSpec, pass: Pass) {
    let mut told = false;
    loop {
        let found = match pass.resolved(|name| keys.secrets.value(name)) {
            Ok(pass) => described(spec.clone(), &pass).await,
            Err(error) => Err(error),
        };
        match found {
            Ok(found) => {
                if let Err(error) = owner.ask(|tx| Input::Register(Box::new(found), tx)).await.and_then(|r| r) {
                    tracing::error!(agent = %spec.name, %error, "an agent elsewhere was found and not registered");
                }
                return;
            }
            Err(error) if !told => {
                told = true;
                tracing::warn!(agent = %spec.name, %error, "an agent elsewhere is not found yet");
            }
            Err(_) => {}
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_have_names_for_people() {
        assert_eq!(named("Hello World Agent!").unwrap().as_str(), "Hello-World-Agent");
        assert_eq!(named(" ..Übersetzer 2.0").unwrap().as_str(), "bersetzer-2.0");
        assert!(named("日本").unwrap_err().hint.is_some());
    }

    #[test]
    fn what_opens_an_agent_is_kept_over_a_restart_and_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let at = |url: &str| -> AgentSpec {
            serde_json::from_value(serde_json::json!({"name": "a", "kind": {"type": "a2a", "url": url}})).unwrap()
        };
        let spec = at("https://h/a");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passes.json");
        let pass = Pass { token: Some("s3cret".into()), ..Pass::default() };
        Passes::load(path.clone()).unwrap().keep(&spec, pass.clone()).unwrap();
        let again = Passes::load(path.clone()).unwrap();
        assert_eq!(again.of(&spec), Some(pass.clone()));
        assert_eq!(again.of(&at("https://other/a")), None, "the token goes where it was given for");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!format!("{again:?}").contains("s3cret"));
        again.keep(&spec, Pass::default()).unwrap();
        assert_eq!(Passes::load(path).unwrap().of(&spec), None);
    }
}
