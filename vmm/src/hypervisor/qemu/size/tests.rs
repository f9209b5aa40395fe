// SPDX-License-Identifier: Apache-2.0
//! The words of QMP for a machine's size.

use super::super::double::{self, Answer};
use super::*;
use magnetar_core::error::Code;
use tokio::net::UnixStream;

const START: Size = Size { memory_mib: 384, vcpus: 1 };
const MOST: Size = Size { memory_mib: 2048, vcpus: 3 };

fn growth(plugs_processors: bool) -> Growth {
    Growth { start: START, most: MOST, plugs_processors, leaving: BTreeSet::new() }
}

/// A QEMU with three slots for processors, whose guest takes half of what it is offered, and
/// lets go of no processor. Returns the commands that it received.
async fn fake(stream: UnixStream, refused: &str) -> Vec<String> {
    let (mut commands, mut processors, mut requested) = (Vec::new(), vec![0], 0);
    let answer = |name: &str, arguments: &Value| {
        let value = match name {
            "qom-set" => {
                requested = arguments["value"].as_u64().unwrap();
                commands.push(format!("memory {}", requested >> 20));
                json!({})
            }
            "qom-get" => json!(requested / 2),
            "device_add" => {
                processors.push(arguments["core-id"].as_u64().unwrap());
                commands.push(format!("+{} {} {}", arguments["id"], arguments["driver"], arguments["core-id"]).replace('"', ""));
                json!({})
            }
            "device_del" => {
                commands.push(format!("-{}", arguments["id"]).replace('"', ""));
                json!({})
            }
            // QEMU lists the last one first.
            "query-hotpluggable-cpus" => (0..3).rev().map(|core| slot(core, processors.contains(&core))).collect(),
            _ => json!({}),
        };
        if name == refused { Answer::refuses("GenericError") } else { Answer::returns(value) }
    };
    double::serve(stream, Value::Null, answer).await;
    commands
}

/// A processor that the machine has or might have.
fn slot(core: u64, is_there: bool) -> Value {
    let mut slot = json!({"type": "host-x86_64-cpu", "vcpus-count": 1, "props": {"socket-id": 0, "core-id": core, "thread-id": 0}});
    if is_there {
        slot["qom-path"] = "/machine/x".into();
    }
    slot
}

async fn resized(mut growth: Growth, refused: &str, sizes: &[(u32, u32)]) -> (Result<Vec<(u32, u32)>>, Vec<String>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let order = async {
        let mut qmp = Qmp::begin(ours).await?;
        let mut answers = Vec::new();
        for &(memory_mib, vcpus) in sizes {
            let Size { memory_mib, vcpus } = growth.resize(&mut qmp, Size { memory_mib, vcpus }).await?;
            answers.push((memory_mib, vcpus));
        }
        Ok(answers)
    };
    tokio::join!(order, fake(theirs, refused))
}

#[tokio::test]
async fn the_guest_is_offered_memory_in_whole_blocks_and_has_what_it_took() {
    let (answers, commands) = resized(growth(false), "", &[(1024, 2), (1023, 1), (8192, 3), (100, 1)]).await;
    assert_eq!(answers.unwrap(), [(384 + 320, 2), (384 + 320, 1), (384 + 832, 3), (384, 1)]);
    assert_eq!(commands, ["memory 640", "memory 640", "memory 1664", "memory 0"], "never more than the most, nor less than the start");
}

#[tokio::test]
async fn processors_are_plugged_in_order_and_unplugged_from_the_last() {
    let (answers, commands) = resized(growth(true), "", &[(384, 3), (384, 3), (384, 1), (384, 1)]).await;
    assert_eq!(answers.unwrap(), [(384, 3); 4], "this guest lets go of none");
    let of_processors: Vec<_> = commands.iter().filter(|command| !command.starts_with("memory")).collect();
    let plugged = ["+cpu-1 host-x86_64-cpu 1", "+cpu-2 host-x86_64-cpu 2"];
    assert_eq!(of_processors, [plugged[0], plugged[1], "-cpu-2", "-cpu-1"], "it is asked once");
}

#[tokio::test]
async fn what_qemu_refuses_is_an_error_with_its_reason() {
    for refused in ["qom-set", "qom-get", "query-hotpluggable-cpus", "device_add"] {
        let (outcome, _) = resized(growth(true), refused, &[(1024, 2)]).await;
        let error = outcome.unwrap_err();
        assert_eq!((error.code(), error.to_string()), (Code::Internal, format!("QEMU refuses {refused}: no")));
    }
}
