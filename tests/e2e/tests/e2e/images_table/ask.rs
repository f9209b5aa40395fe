// SPDX-License-Identifier: Apache-2.0
//! Asks one handler all cases of a part: a pod of each kind that is needed, several containers at a
//! time.

use std::{collections::BTreeMap, fmt};

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _};
use magnetar_cri::{Code, Container, ContainerSpec, Error, Frame, Pod, PodSpec};
use magnetar_e2e::Case;

use super::files::Files;

/// How many containers are made at a time. The order in which they end is nobody's concern.
const AT_ONCE: usize = 6;

/// What kind of pod a case needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pods {
    /// Namespaces of its own, a name, a name server and a sysctl.
    Plain,
    /// May hold privileged containers.
    Privileged,
    /// Root in it is another user on the node.
    UserNamespace,
}

impl Pods {
    /// The first of 65536 users that root is on the node.
    pub const ROOT_IS: u32 = 100_000;

    fn spec(self, handler: &str) -> PodSpec {
        let spec = PodSpec::new("table", handler).own_pid().hostname("the-host").dns(&["10.9.9.9"], &["a.example"], &[]);
        match self {
            Self::Plain => spec.sysctl("net.ipv4.ip_unprivileged_port_start", "77"),
            Self::Privileged => spec.privileged(),
            Self::UserNamespace => spec.user_namespace(Self::ROOT_IS, 65_536),
        }
    }
}

/// What a handler must have before it can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Pods with a user namespace of the node's.
    UserNamespace,
    /// Mounts that are read-only all the way down, announced by containerd.
    RecursiveReadOnly,
}

/// What is asked.
pub enum Action {
    /// A container is made and runs to its end.
    Run(Box<ContainerSpec>),
    /// A script runs in a container of the odd image which runs all such scripts, one after the
    /// other.
    Script(String),
    /// A command runs in the container of that name, one of those in `commands`.
    Command(&'static str, Vec<String>),
    /// A script does, on a terminal.
    TerminalCommand(&'static str, String),
}

/// One case of the table.
pub struct Question {
    pub name: &'static str,
    pub action: Action,
    pub needs: Option<Needs>,
    pods: Pods,
    subject: &'static str,
}

impl Question {
    pub fn run(name: &'static str, spec: ContainerSpec) -> Self {
        Self::new(name, Action::Run(Box::new(spec)))
    }

    pub fn script(name: &'static str, script: &str) -> Self {
        Self::new(name, Action::Script(script.to_owned()))
    }

    pub fn command(name: &'static str, of: &'static str, words: &[&str]) -> Self {
        Self::new(name, Action::Command(of, owned(words)))
    }

    pub fn terminal_command(name: &'static str, of: &'static str, script: &str) -> Self {
        Self::new(name, Action::TerminalCommand(of, script.to_owned()))
    }

    fn new(name: &'static str, action: Action) -> Self {
        Self { name, action, needs: None, pods: Pods::Plain, subject: "" }
    }

    pub fn in_pod(self, pods: Pods) -> Self {
        let needs = if pods == Pods::UserNamespace { Some(Needs::UserNamespace) } else { self.needs };
        Self { pods, needs, ..self }
    }

    /// As a kubelet, asks only where containerd announces it of the handler.
    pub fn if_recursive_read_only(self) -> Self {
        Self { needs: Some(Needs::RecursiveReadOnly), ..self }
    }

    /// The case is refused, and this is what the refusal must name.
    pub fn refused(self, subject: &'static str) -> Self {
        Self { subject, ..self }
    }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// What is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A call was answered with an error: which, by which code, and whether it named the case's
    /// subject. A container that was created and not started has an exit code and a reason
    /// afterwards.
    Refused { call: &'static str, code: Code, names_subject: bool, left: Option<(i32, String)> },
    /// It ran and ended. A command has no reason.
    Ended { code: i32, reason: String, stdout: String, stderr: String },
}

impl Outcome {
    /// Whether it is the same as runc's. The stock shim passes on no code of its runtime: all that
    /// runc refuses is Unknown. Ours say what it is.
    pub fn is_as(&self, stock: &Self) -> bool {
        match (self, stock) {
            (
                Self::Refused { call, code, names_subject, left },
                Self::Refused { call: c, code: Code::Unknown, names_subject: n, left: l },
            ) => {
                let says_more = [Code::NotFound, Code::InvalidArgument, Code::PermissionDenied, Code::FailedPrecondition, Code::Internal];
                (*code == Code::Unknown || says_more.contains(code)) && (call, names_subject, left) == (c, n, l)
            }
            _ => self == stock,
        }
    }
}

/// An outcome, and what people read besides.
#[derive(Clone, Debug)]
pub struct Answer {
    pub name: &'static str,
    pub outcome: Outcome,
    message: String,
}

impl Answer {
    /// A case that is not refused has no subject.
    pub fn names_its_subject(&self) -> bool {
        match self.outcome {
            Outcome::Refused { names_subject, .. } => names_subject,
            Outcome::Ended { .. } => true,
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Outcome::Refused { call, code, left, .. } => write!(f, "refused by {call}: {code:?}: {}; left {left:?}", self.message),
            Outcome::Ended { code, reason, stdout, stderr } => write!(f, "ended with {code} {reason} {stdout:?} {stderr:?}"),
        }
    }
}

/// One handler's pods and long-lived containers, while it is asked.
struct Asked<'a> {
    case: &'a Case,
    files: &'a Files,
    pods: BTreeMap<Pods, Pod>,
    containers: BTreeMap<&'static str, Container>,
    scripts: BTreeMap<&'static str, Outcome>,
}

/// The answers of a handler, in the order of the questions.
pub async fn ask(case: &Case, handler: &str, files: &Files, questions: Vec<Question>) -> Result<Vec<Answer>> {
    let mut asked = Asked { case, files, pods: BTreeMap::new(), containers: BTreeMap::new(), scripts: BTreeMap::new() };
    for question in &questions {
        asked.prepare(handler, question).await.with_context(|| format!("{handler}: {}", question.name))?;
    }
    asked.run_scripts(&questions).await.with_context(|| handler.to_owned())?;
    let asked = &asked;
    // Commands run one by one: the stock shim mistakes the error of one exec for that of another in
    // the same container.
    let has_commands = !asked.containers.is_empty();
    let answers =
        futures_util::stream::iter(questions.iter().enumerate())
            .map(|(number, question)| async move {
                asked.answer(number, question).await.with_context(|| format!("{handler}: {}", question.name))
            })
            .buffered(if has_commands { 1 } else { AT_ONCE })
            .try_collect()
            .await?;
    for pod in asked.pods.values() {
        pod.clone().remove().await?;
    }
    Ok(answers)
}

impl Asked<'_> {
    /// Makes the pod of a question, and the container that a command runs in.
    async fn prepare(&mut self, handler: &str, question: &Question) -> Result<()> {
        if !self.pods.contains_key(&question.pods) {
            self.pods.insert(question.pods, self.case.node().run_pod(&question.pods.spec(handler)).await?);
        }
        if let Action::Command(name, _) | Action::TerminalCommand(name, _) = question.action
            && !self.containers.contains_key(name)
        {
            let spec = super::commands::container(name)?;
            let container = self.pod(question)?.run(&spec.named(name)).await?;
            self.containers.insert(name, container);
        }
        Ok(())
    }

    /// Runs all scripts in one container, and takes apart what they print.
    async fn run_scripts(&mut self, questions: &[Question]) -> Result<()> {
        let script = |question: &Question| match &question.action {
            Action::Script(script) => Some((question.name, script.clone())),
            Action::Run(_) | Action::Command(..) | Action::TerminalCommand(..) => None,
        };
        let (names, scripts): (Vec<_>, Vec<_>) = questions.iter().filter_map(script).unzip();
        let Some(pod) = self.pods.get(&Pods::Plain).filter(|_| !names.is_empty()) else { return Ok(()) };
        let each = "for script; do sh -c \"$script\"; code=$?; printf '\\036%s\\n' $code; printf '\\036\\n' >&2; done";
        let words = ["sh", "-c", each, "sh"].into_iter().map(str::to_owned).chain(scripts);
        let container = pod.run(&super::mounts::odd("").named("scripts").command(words)).await?;
        container.exited(self.case.within(60)).await?;
        let log = self.case.whole_log(&container).await?;
        let plain = |text: String| self.plain(pod, &container, &text);
        let (stdout, stderr) = (plain(log.stdout()), plain(log.stderr()));
        let (mut stdout, mut stderr) = (stdout.split('\u{1e}'), stderr.split("\u{1e}\n"));
        let mut printed = stdout.next().unwrap_or_default().to_owned();
        for name in names {
            let (code, next) = stdout.next().and_then(|text| text.split_once('\n')).with_context(|| format!("{name}: did not end"))?;
            let stderr = stderr.next().unwrap_or_default().to_owned();
            let code = code.parse().with_context(|| format!("{name}: exit code {code:?}"))?;
            self.scripts.insert(name, Outcome::Ended { code, reason: String::new(), stdout: printed, stderr });
            printed = next.to_owned();
        }
        Ok(container.remove().await?)
    }

    /// A text without what no two containers have in common.
    fn plain(&self, pod: &Pod, container: &Container, text: &str) -> String {
        self.files.without_path(text).replace(container.id(), "<container>").replace(pod.id(), "<pod>")
    }

    fn pod(&self, question: &Question) -> Result<&Pod> {
        self.pods.get(&question.pods).context("the pod of this kind is not there")
    }

    async fn answer(&self, number: usize, question: &Question) -> Result<Answer> {
        let (outcome, message) = match &question.action {
            Action::Run(spec) => self.run(self.pod(question)?, &spec.clone().named(&format!("case-{number}")), question).await?,
            Action::Script(_) => (self.scripts.get(question.name).context("the script has not run")?.clone(), String::new()),
            Action::Command(of, words) => {
                let output = self.container(of)?.exec(words.iter().cloned()).await;
                let ended = output.map(|output| (output.code, output.stdout, output.stderr));
                self.command(question, "ExecSync", ended)?
            }
            Action::TerminalCommand(of, script) => {
                let output = self.terminal(of, script).await?;
                self.command(question, "Exec", output)?
            }
        };
        Ok(Answer { name: question.name, outcome, message })
    }

    fn container(&self, name: &str) -> Result<&Container> {
        self.containers.get(name).with_context(|| format!("no container {name}"))
    }

    /// containerd drops what is on a terminal when its command ends, with every handler: so the
    /// command waits until it has been read.
    async fn terminal(&self, of: &str, script: &str) -> Result<magnetar_cri::Result<(i32, String, String)>> {
        const WAITS: &str = "eval \"$1\"; code=$?; printf '\\036'; read -r _; exit $code";
        let mut session = match self.container(of)?.exec_stream(["sh", "-c", WAITS, "sh", script], true, true).await {
            Ok(session) => session,
            Err(error) => return Ok(Err(error)),
        };
        let (mut output, mut read) = (Vec::new(), false);
        loop {
            match session.receive().await? {
                Some(Frame::Stdout(bytes) | Frame::Stderr(bytes)) => output.extend(bytes),
                Some(Frame::Exit(code)) => {
                    let text = String::from_utf8_lossy(&output);
                    let text = text.split('\u{1e}').next().unwrap_or_default().to_owned();
                    return Ok(Ok((code, text, String::new())));
                }
                Some(Frame::Failed(message)) => bail!("{message}"),
                None => bail!("the command ended without an exit code"),
            }
            if !read && output.contains(&0x1e) {
                read = true;
                session.send(b"\n").await?;
            }
        }
    }

    fn command(
        &self,
        question: &Question,
        call: &'static str,
        ended: magnetar_cri::Result<(i32, String, String)>,
    ) -> Result<(Outcome, String)> {
        match ended {
            Ok((code, stdout, stderr)) => {
                let (stdout, stderr) = (self.files.without_path(&stdout), self.files.without_path(&stderr));
                Ok((Outcome::Ended { code, reason: String::new(), stdout, stderr }, String::new()))
            }
            Err(error) => refused(question, call, error, None),
        }
    }

    async fn run(&self, pod: &Pod, spec: &ContainerSpec, question: &Question) -> Result<(Outcome, String)> {
        let container = match pod.create(spec).await {
            Ok(container) => container,
            Err(error) => return refused(question, "CreateContainer", error, None),
        };
        let plain = |text: String| self.plain(pod, &container, &text);
        let outcome = match container.start().await {
            Ok(()) => {
                let status = container.exited(self.case.within(30)).await?;
                let log = self.case.whole_log(&container).await?;
                let (stdout, stderr) = (plain(log.stdout()), plain(log.stderr()));
                (Outcome::Ended { code: status.exit_code, reason: status.reason, stdout, stderr }, String::new())
            }
            Err(error) => {
                let status = container.status().await?;
                refused(question, "StartContainer", error, Some((status.exit_code, status.reason)))?
            }
        };
        container.remove().await?;
        Ok(outcome)
    }
}

/// An answer that does not come, or comes broken, is no refusal.
fn refused(question: &Question, call: &'static str, error: Error, left: Option<(i32, String)>) -> Result<(Outcome, String)> {
    let Some(code) = error.code() else { return Err(error.into()) };
    let message = error.message().to_owned();
    // An empty subject is in every message, but then nobody thought of a refusal.
    let names_subject = !question.subject.is_empty() && message.contains(question.subject);
    ensure!(code != Code::Unavailable && code != Code::DeadlineExceeded, "{call}: {message}");
    Ok((Outcome::Refused { call, code, names_subject, left }, message))
}
