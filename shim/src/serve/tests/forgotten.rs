// SPDX-License-Identifier: Apache-2.0
//! Tests the removal of pods that containerd has forgotten, with a fake store on a real socket and
//! with real processes.

use super::store::{FakeStore, Says};
use super::*;

/// Short times, which a machine under load can still keep.
const RHYTHM: Rhythm = Rhythm {
    unstarted: Duration::from_secs(600),
    first: [Duration::from_millis(20); 3],
    later: Duration::from_millis(20),
    again: Duration::from_millis(20),
};

impl Node {
    fn containerd(&self) -> PathBuf {
        self.0.path().join("containerd.sock")
    }

    /// Makes pods that are started from now on belong to this node's fake containerd.
    fn configure(&self) {
        std::fs::create_dir(self.0.path().join("config")).unwrap();
        let text = format!("sandboxer = \"good\"\n[containerd]\naddress = {:?}\n", self.containerd());
        std::fs::write(self.0.path().join("config/good.toml"), text).unwrap();
    }
}

#[test]
fn only_orphans_of_an_earlier_serve_are_removed() {
    let node = Node::new();
    node.configure();
    let mut orphan = 0;
    node.before(async |serve| {
        orphan = serve.run("orphan", "good").await;
        serve.create("unborn", "good").await.unwrap();
        serve.run("known", "good").await;
        serve.create("created", "good").await.unwrap();
    });
    let foreign = node.dir("foreign");
    foreign.make().unwrap();
    foreign.write_pod(&node.dir("known").pod().unwrap()).unwrap();
    Stage::Creating.advance(&foreign, Stage::Foreign).unwrap();
    alone(async {
        let store = FakeStore::serve(&node.containerd(), &[("known", Says::Known), ("created", Says::Known)]);
        let serve = node.serve_in(RHYTHM);
        within("the orphans are removed", || ["orphan", "unborn"].iter().all(|id| !node.dir(id).path().exists())).await;
        assert!(!lives(orphan));
        within("the others were asked for more than twice", || ["known", "created"].iter().all(|id| store.asked(id) > 2)).await;
        let mut pods = serve.pods();
        pods.sort();
        assert_eq!(pods, ["created", "foreign", "known"]);
        assert_eq!(["orphan", "unborn", "foreign"].map(|id| store.asked(id)), [2, 2, 0]);
        assert_eq!(serve.status("known").await.unwrap().state, "SANDBOX_READY");
    });
}

#[tokio::test(flavor = "current_thread")]
async fn a_forgotten_pod_is_removed_once_its_wait_call_ends() {
    let node = Node::new();
    node.configure();
    let store = FakeStore::serve(&node.containerd(), &[("a", Says::Unavailable)]);
    let serve = node.serve_in(RHYTHM);
    serve.run("a", "good").await;
    within("it was asked for", || store.asked("a") > 2).await;
    assert_eq!(serve.pods(), ["a"], "no answer is no denial");
    store.set("a", Says::Known);
    let mut waits = JoinSet::new();
    let mut client = serve.client.clone();
    waits.spawn(async move { client.wait(ask(ControllerWaitRequest { sandbox_id: "a".into(), ..Default::default() })).await });
    // Both calls are on one connection and arrive in order, so the Wait is there when Status is
    // answered. A question to the store that was under way may still end.
    serve.status("a").await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let asked = store.asked("a");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(store.asked("a"), asked, "containerd is not asked about a pod with a Wait call");
    drop(store);
    let store = FakeStore::serve(&node.containerd(), &[]);
    waits.shutdown().await;
    within("the pod is removed", || serve.pods().is_empty()).await;
    assert_eq!(store.asked("a"), 2);
}

#[tokio::test(flavor = "current_thread")]
async fn no_pod_is_removed_while_containerd_cannot_be_asked() {
    let node = Node::new();
    node.configure();
    let serve = node.serve_in(RHYTHM);
    let pid = serve.run("a", "good").await;
    // In turn: no socket, a socket that answers garbage, a socket without a listener, another
    // service.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let listener = tokio::net::UnixListener::bind(node.containerd()).unwrap();
    for answer in [&b""[..], b"HTTP/1.1 404 Not Found\r\n\r\n", &[0; 100]] {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _refused = tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await;
    }
    drop(listener);
    tokio::time::sleep(Duration::from_millis(100)).await;
    std::fs::remove_file(node.containerd()).unwrap();
    let (_listener, owned) = socket::listen(&node.containerd()).unwrap();
    drop(owned);
    let other = node.0.path().join("serve.sock");
    std::os::unix::fs::symlink(other, node.containerd()).unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!((serve.pods(), serve.status("a").await.unwrap().pid), (vec!["a".to_string()], pid));
    // Then containerd is there again.
    std::fs::remove_file(node.containerd()).unwrap();
    let _store = FakeStore::serve(&node.containerd(), &[]);
    within("the pod is removed", || serve.pods().is_empty()).await;
    assert!(!lives(pid));
}
