//! How processes of user code are started: with an environment of their own, and in a sandbox. Agents, tools and jobs start
//! here and nowhere else.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use covey_domain::isolation::Offer;
use covey_sandbox::{Isolation, Policy};
use tokio::process::Command;

/// Variables that a process has of its worker's: how this machine speaks, finds programs and packages, and reaches others.
/// What may be a secret is not among them; `--pass-env` names more.
const PASSED: &[&str] = &[
    "PATH",
    "LANG",
    "LANGUAGE",
    "TZ",
    "TERM",
    "USER",
    "LOGNAME",
    "SHELL",
    "TMPDIR",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "LD_LIBRARY_PATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "CUDA_HOME",
    "CUDA_PATH",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
    "COVEY_MACHINE",
];

/// Beginnings of names of more.
const PASSED_WITH: &[&str] = &["LC_", "PYTHON", "OMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "MALLOC_"];

/// OpenTelemetry's settings, but not its headers, which hold keys.
const TRACING: &str = "OTEL_";
const TRACING_SECRETS: &str = "_HEADERS";

/// What pip is told of its indexes; for what installs packages, and for nothing else.
const INSTALLS_WITH: &[&str] = &["PIP_", "UV_"];

/// What does not enter a sandbox within this time will not.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a worker decided for all of its processes.
#[derive(Clone, Debug, Default)]
pub struct LaunchConfig {
    /// The `covey` binary, which puts a sandbox on and becomes what is started; `None` = processes have none.
    pub guard: Option<PathBuf>,
    /// How much they are kept from at least; an agent may ask for more.
    pub isolation: Isolation,
    /// What they may read beside the system.
    pub read: Vec<PathBuf>,
    /// What they may change.
    pub write: Vec<PathBuf>,
    /// What is hidden from them wherever it lies, but for what is named below it.
    pub hide: Vec<PathBuf>,
    /// A folder of the worker's own for temporary files, where the usual one holds what is hidden and cannot be given.
    pub temporary: Option<PathBuf>,
    /// Variables that are passed to them beside the usual ones.
    pub pass_env: Vec<String>,
    /// Where they are at home: a folder of the worker's own.
    pub home: PathBuf,
}

/// Starts processes.
#[derive(Debug)]
pub(crate) struct Launcher {
    config: LaunchConfig,
    environment: Vec<(OsString, OsString)>,
    /// With what installs packages needs.
    installs: Vec<(OsString, OsString)>,
}

/// One process to start.
#[derive(Debug, Default)]
pub(crate) struct Launch<'a> {
    /// What it may read beside what all may.
    pub read: &'a [PathBuf],
    /// What it may change beside what all may.
    pub write: &'a [PathBuf],
    /// It is ended by the kernel when the worker's thread that started it ends.
    pub with_parent: bool,
    /// How much its agent asks that it be kept from.
    pub isolation: Option<Isolation>,
}

impl Launcher {
    /// With this process's environment as it is now.
    pub fn new(config: LaunchConfig) -> Self {
        let all: Vec<(OsString, OsString)> = std::env::vars_os().collect();
        let taken = |wanted: &dyn Fn(&str) -> bool| -> Vec<_> {
            all.iter().filter(|(name, _)| name.to_str().is_some_and(wanted)).cloned().collect()
        };
        let usual = |name: &str| is_passed(name) || config.pass_env.iter().any(|passed| passed == name);
        let environment = taken(&usual);
        let installs = taken(&|name| usual(name) || INSTALLS_WITH.iter().any(|start| name.starts_with(start)));
        Self { config, environment, installs }
    }

    /// The level of a process whose agent asks for this: the worker's own, or more.
    pub fn level(&self, asked: Option<Isolation>) -> Isolation {
        self.least().max(asked.unwrap_or(Isolation::None))
    }

    /// The worker's own level; without a guard it has none to give.
    fn least(&self) -> Isolation {
        if self.config.guard.is_some() { self.config.isolation } else { Isolation::None }
    }

    /// What this machine can give, found by entering the strictest sandbox and leaving it by its end.
    pub async fn offer(&self) -> Offer {
        let least = self.least();
        let Some(guard) = &self.config.guard else {
            return Offer { least, most: least, lacks: "this worker was made without a sandbox".to_owned() };
        };
        let strict = Launch { isolation: Some(Isolation::Strict), ..Launch::default() };
        let mut probe = self.command(guard, &strict);
        let out = probe.arg("--version").stdin(Stdio::null()).kill_on_drop(true).output();
        let lacks = match tokio::time::timeout(PROBE_TIMEOUT, out).await {
            Ok(Ok(out)) if out.status.success() => String::new(),
            Ok(Ok(out)) => {
                let said = String::from_utf8_lossy(&out.stderr);
                let line = said.lines().next().unwrap_or("the sandbox could not be entered");
                // The guard's own words are about one program, and for a terminal.
                let why = line.split_once("`: ").map_or(line, |(_, why)| why);
                why.split("; `covey").next().unwrap_or(why).to_owned()
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("the sandbox was not entered within {} s", PROBE_TIMEOUT.as_secs()),
        };
        let most = if lacks.is_empty() { Isolation::Strict } else { Isolation::Default };
        Offer { least, most: most.max(least), lacks }
    }

    /// A command that runs `program` with a clean environment, in the sandbox.
    pub fn command(&self, program: &Path, launch: &Launch<'_>) -> Command {
        self.prepared(program, launch, &self.environment)
    }

    /// The same for what installs packages.
    pub fn installer(&self, program: &Path, launch: &Launch<'_>) -> Command {
        self.prepared(program, launch, &self.installs)
    }

    fn prepared(&self, program: &Path, launch: &Launch<'_>, environment: &[(OsString, OsString)]) -> Command {
        let level = self.level(launch.isolation);
        let isolated = level != Isolation::None;
        let mut command = match &self.config.guard {
            Some(guard) if isolated || launch.with_parent => {
                let mut command = Command::new(guard);
                command.arg("guard");
                if isolated {
                    command.arg("--policy").arg(self.policy(level, program, launch));
                }
                if launch.with_parent {
                    command.arg("--with-parent");
                }
                command.arg("--").arg(program);
                command
            }
            _ => Command::new(program),
        };
        command.env_clear().envs(environment.iter().cloned());
        match isolated && self.config.guard.is_some() {
            // Where it is at home otherwise is out of reach.
            true => command.env("HOME", &self.config.home),
            false => command.envs(std::env::var_os("HOME").map(|home| ("HOME", home))),
        };
        command
    }

    fn policy(&self, isolation: Isolation, program: &Path, launch: &Launch<'_>) -> String {
        let LaunchConfig { read, write, hide, home, temporary, .. } = &self.config;
        let policy = Policy {
            isolation,
            // Wherever it lies, it may be run.
            read: read.iter().chain(launch.read).cloned().chain(found(program)).collect(),
            write: write.iter().chain(launch.write).chain([home]).cloned().collect(),
            hide: hide.clone(),
            temporary: temporary.clone(),
        };
        serde_json::to_string(&policy).expect("a policy is paths and a name")
    }
}

/// The file of a program, by its path or by its name; `None` where there is none.
pub(crate) fn found(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return program.canonicalize().ok();
    }
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders).find_map(|folder| folder.join(program).canonicalize().ok())
}

fn is_passed(name: &str) -> bool {
    PASSED.contains(&name)
        || PASSED_WITH.iter().any(|start| name.starts_with(start))
        || (name.starts_with(TRACING) && !name.ends_with(TRACING_SECRETS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_a_secret_is_not_passed() {
        for name in ["PATH", "LC_ALL", "PYTHONPATH", "OMP_NUM_THREADS", "OTEL_EXPORTER_OTLP_ENDPOINT"] {
            assert!(is_passed(name), "{name}");
        }
        let secrets = [
            "COVEY_TOKEN",
            "COVEY_JOIN",
            "COVEY_HOME",
            "AWS_SECRET_ACCESS_KEY",
            "OPENAI_API_KEY",
            "PIP_INDEX_URL",
            "OTEL_EXPORTER_OTLP_HEADERS",
            "SSH_AUTH_SOCK",
            "HOME",
        ];
        for name in secrets {
            assert!(!is_passed(name), "{name}");
        }
    }

    #[test]
    fn an_agent_has_no_less_than_its_workers_level() {
        let guard: Option<PathBuf> = Some("covey".into());
        for own in Isolation::ALL {
            let launcher =
                Launcher::new(LaunchConfig { guard: guard.clone(), isolation: own, ..LaunchConfig::default() });
            assert_eq!(launcher.level(None), own);
            for asked in Isolation::ALL {
                assert_eq!(launcher.level(Some(asked)), own.max(asked));
                let launch = Launch { isolation: Some(asked), ..Launch::default() };
                let command = launcher.command(Path::new("true"), &launch);
                let args: Vec<_> = command.as_std().get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
                let said = format!(r#""isolation":"{}""#, own.max(asked).name());
                let none = own.max(asked) == Isolation::None;
                assert!(none == args.is_empty() && (none || args[2].contains(&said)), "{args:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_process_has_a_clean_environment() {
        let launcher =
            Launcher::new(LaunchConfig { pass_env: vec!["CARGO_PKG_NAME".into()], ..LaunchConfig::default() });
        let out = launcher.command(Path::new("env"), &Launch::default()).output().await.unwrap();
        let out = String::from_utf8(out.stdout).unwrap();
        let names: Vec<_> = out.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
        assert!(names.contains(&"PATH") && names.contains(&"CARGO_PKG_NAME"), "{names:?}");
        assert!(!names.contains(&"CARGO_MANIFEST_DIR"), "{names:?}");
    }
}
