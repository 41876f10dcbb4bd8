//! What keeps processes of user code apart here.

use std::os::unix::fs::PermissionsExt as _;

use covey_node::home;
use covey_sandbox::{Support, support};

use super::Finding::{self, Good, Less};

pub(crate) fn look() -> Vec<Finding> {
    let found = std::env::current_exe().map(|own| support(std::process::Command::new(own).args(["guard", "--probe"])));
    let found = found.unwrap_or(Support { landlock: 0, namespaces: false, root: false });
    let mut findings = isolation(found);
    findings.extend(files());
    findings
}

fn isolation(found: Support) -> Vec<Finding> {
    let files = match found.landlock {
        0 => Less(
            "Landlock: none (Linux 5.13 has it): `default` keeps no files from agents, `strict` starts none".into(),
        ),
        version @ 1..6 => {
            Less(format!("Landlock: version {version}; from 6 on (Linux 6.12) signals to others are refused too"))
        }
        version => Good(format!("Landlock: version {version}: files, other processes, signals")),
    };
    let spaces = match found.namespaces {
        true => Good(
            "namespaces: a network of its own for `strict`; COVEY_HOME is covered where agents may read around it".into(),
        ),
        false => {
            Less(
                "namespaces: not allowed to this user: `strict` starts nothing; with COVEY_HOME in /tmp agents have no /tmp, but a \
                 folder of their worker's"
                    .into(),
            )
        }
    };
    let mut all = vec![files, spaces];
    if found.root {
        all.push(Less(
            "user: root. Processes of agents keep its permissions; a user of its own for Covey is better".into(),
        ));
    }
    all
}

/// Files of the cluster that others can read.
fn files() -> Vec<Finding> {
    let root = home::root();
    let mut all = Vec::new();
    for name in ["", "credentials.json", "head", "workers", "head/issuer.key", "head/authority.key", "head/signing.key"]
    {
        let path = root.join(name);
        let Ok(meta) = std::fs::metadata(&path) else { continue };
        let mode = meta.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            all.push(Less(format!("files: `{}` has mode {mode:o}; others can look in (chmod go= it)", path.display())));
        }
    }
    if all.is_empty() {
        all.push(Good(format!("files: nobody else reads `{}`", root.display())));
    }
    all
}
