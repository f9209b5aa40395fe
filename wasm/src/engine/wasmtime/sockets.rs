// SPDX-License-Identifier: Apache-2.0
//! WasmEdge's sockets for modules of WASI preview 1, which by itself has no call that makes a
//! socket: servers that were compiled for WasmEdge run here as they are.
//!
//! ```text
//! a module imports one of WasmEdge's functions?  ── no ──> nothing of this is there
//!          │ yes
//!          ├─ sock_*: system calls, by rustix
//!          └─ fd_read, fd_write, …, poll_oneoff: is the descriptor a socket of ours?
//!                                                ── no ──> Wasmtime's own function
//! ```
//!
//! The functions are those that the crate wasmedge_wasi_socket declares, up to its version 0.5.
//! Some have two versions, which WasmEdge tells apart by their types, or by a name that ends in
//! `_v2` (its `lib/executor/instantiate/import.cpp`). The pod's network namespace is the boundary:
//! any address is allowed. Unix sockets are absent, as they are in WasmEdge without its option for
//! them.
//!
//! rustix makes the system calls: socket2 receives into memory that may be uninitialised, to which
//! a module's memory cannot be converted without unsafe code.

mod address;
mod calls;
mod errno;
mod lookup;
mod memory;
mod options;
mod poll;
mod table;

pub use table::Sockets;

use super::{CoreWasi, State};
use crate::engine::format::PREVIEW1;
use calls::{Message, Sender, Side};
use errno::{Errno, Result};
use lookup::Query;
use memory::Memory;
use poll::Poll;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use wasmtime::{AsContextMut, Caller, Extern, Linker, Module};
// Its functions are documented to be for Wasmtime itself. There is no other way to call what is
// shadowed: a function that the host takes from a linker does not find the module's memory.
use wasmtime_wasi::p1::wasi_snapshot_preview1 as preview1;
use wiggle::GuestMemory;

/// The functions for sockets that are in preview 1 itself, with the number of their parameters.
const STANDARD: [(&str, usize); 4] = [("sock_accept", 3), ("sock_recv", 6), ("sock_send", 5), ("sock_shutdown", 2)];

/// A call of a module.
type Call<'a> = Caller<'a, State<CoreWasi>>;

/// What a module imports from preview 1, with the number of parameters.
type Imports = BTreeMap<String, usize>;

/// Adds WasmEdge's functions, and those that stand before Wasmtime's own, if a module imports one
/// of WasmEdge's.
///
/// # Errors
/// If the linker does not take them.
pub fn add_to_linker(linker: &mut Linker<State<CoreWasi>>, module: &Module) -> wasmtime::Result<()> {
    let imports = module.imports().filter(|import| import.module() == PREVIEW1);
    let with_parameters = imports.filter_map(|import| Some((import.name().to_owned(), import.ty().func()?.params().len())));
    let imports: Imports = with_parameters.collect();
    if !is_for_wasmedge(&imports) {
        return Ok(());
    }
    linker.allow_shadowing(true);
    add_connections(linker, &imports)?;
    add_messages(linker, &imports)?;
    add_names(linker, &imports)?;
    add_options(linker)?;
    add_descriptors(linker)?;
    add_streams(linker)?;
    linker.allow_shadowing(false);
    Ok(())
}

fn is_for_wasmedge(imports: &Imports) -> bool {
    let is_own = |name: &str, parameters: usize| name.starts_with("sock_") && !STANDARD.contains(&(name, parameters));
    imports.iter().any(|(name, parameters)| is_own(name, *parameters))
}

/// Whether a module imports the version of a function that has so many parameters.
fn has(imports: &Imports, name: &str, parameters: usize) -> bool {
    imports.get(name) == Some(&parameters)
}

fn add_connections(linker: &mut Linker<State<CoreWasi>>, imports: &Imports) -> wasmtime::Result<()> {
    for name in ["sock_open", "sock_open_v2"] {
        linker.func_wrap(PREVIEW1, name, |call: Call<'_>, family: u32, kind: u32, to: u32| {
            with_memory(call, |wasi, memory| calls::open(&mut wasi.sockets, memory, family, kind, to))
        })?;
    }
    for name in ["sock_bind", "sock_bind_v2"] {
        linker.func_wrap(PREVIEW1, name, |call: Call<'_>, number: u32, address: u32, port: u32| {
            with_socket(call, number, |socket, memory| calls::bind(socket, memory, address, port))
        })?;
    }
    for name in ["sock_listen", "sock_listen_v2"] {
        linker.func_wrap(PREVIEW1, name, |call: Call<'_>, number: u32, backlog: i32| {
            with_socket(call, number, |socket, _| calls::listen(socket, backlog))
        })?;
    }
    for name in ["sock_accept", "sock_accept_v2"] {
        if has(imports, name, 2) {
            linker.func_wrap(PREVIEW1, name, |call: Call<'_>, number: u32, to: u32| accept(call, number, 0, to))?;
        } else {
            linker.func_wrap(PREVIEW1, name, accept)?;
        }
    }
    for name in ["sock_connect", "sock_connect_v2"] {
        linker.func_wrap(PREVIEW1, name, |call: Call<'_>, number: u32, address: u32, port: u32| {
            with_socket(call, number, |socket, memory| calls::connect(socket, memory, address, port))
        })?;
    }
    linker.func_wrap(PREVIEW1, "sock_shutdown", |call: Call<'_>, number: u32, how: u32| {
        with_socket(call, number, |socket, _| calls::shutdown(socket, how))
    })?;
    Ok(())
}

fn accept(call: Call<'_>, number: u32, flags: u32, to: u32) -> i32 {
    with_memory(call, |wasi, memory| {
        wasi.socket(number)?;
        calls::accept(&mut wasi.sockets, memory, number, flags, to)
    })
}

fn add_messages(linker: &mut Linker<State<CoreWasi>>, imports: &Imports) -> wasmtime::Result<()> {
    for name in ["sock_recv", "sock_recv_v2"] {
        let receive = |call: Call<'_>, number: u32, list: u32, count: u32, flags: u32, size_to: u32, flags_to: u32| {
            let message = Message { list, count, flags };
            with_socket(call, number, |socket, memory| calls::receive(socket, memory, message, size_to, Some(flags_to)))
        };
        linker.func_wrap(PREVIEW1, name, receive)?;
    }
    for name in ["sock_recv_from", "sock_recv_from_v2"] {
        if has(imports, name, 7) {
            let old = |call: Call<'_>, number: u32, list: u32, count: u32, address: u32, flags: u32, size_to: u32, flags_to: u32| {
                receive_from(call, number, Message { list, count, flags }, Sender { address, port: None }, size_to, flags_to)
            };
            linker.func_wrap(PREVIEW1, name, old)?;
        } else {
            let new =
                |call: Call<'_>, number: u32, list: u32, count: u32, address: u32, flags: u32, port: u32, size_to: u32, flags_to: u32| {
                    receive_from(call, number, Message { list, count, flags }, Sender { address, port: Some(port) }, size_to, flags_to)
                };
            linker.func_wrap(PREVIEW1, name, new)?;
        }
    }
    for name in ["sock_send", "sock_send_v2"] {
        linker.func_wrap(PREVIEW1, name, |call: Call<'_>, number: u32, list: u32, count: u32, flags: u32, size_to: u32| {
            let message = Message { list, count, flags };
            with_socket(call, number, |socket, memory| calls::send(socket, memory, message, None, size_to))
        })?;
    }
    for name in ["sock_send_to", "sock_send_to_v2"] {
        let send = |call: Call<'_>, number: u32, list: u32, count: u32, address: u32, port: u32, flags: u32, size_to: u32| {
            let message = Message { list, count, flags };
            with_socket(call, number, |socket, memory| calls::send(socket, memory, message, Some((address, port)), size_to))
        };
        linker.func_wrap(PREVIEW1, name, send)?;
    }
    Ok(())
}

fn receive_from(call: Call<'_>, number: u32, message: Message, sender: Sender, size_to: u32, flags_to: u32) -> i32 {
    with_socket(call, number, |socket, memory| calls::receive_from(socket, memory, message, sender, size_to, flags_to))
}

fn add_names(linker: &mut Linker<State<CoreWasi>>, imports: &Imports) -> wasmtime::Result<()> {
    let sides = [
        ("sock_getlocaladdr", Side::Local),
        ("sock_getlocaladdr_v2", Side::Local),
        ("sock_getpeeraddr", Side::Peer),
        ("sock_getpeeraddr_v2", Side::Peer),
    ];
    for (name, side) in sides {
        if has(imports, name, 4) {
            linker.func_wrap(PREVIEW1, name, move |call: Call<'_>, number: u32, address: u32, kind: u32, port: u32| {
                with_socket(call, number, |socket, memory| calls::name(socket, memory, side, address, Some(kind), port))
            })?;
        } else {
            linker.func_wrap(PREVIEW1, name, move |call: Call<'_>, number: u32, address: u32, port: u32| {
                with_socket(call, number, |socket, memory| calls::name(socket, memory, side, address, None, port))
            })?;
        }
    }
    let look_up =
        |call: Call<'_>, node: u32, node_size: u32, name: u32, name_size: u32, hints: u32, results: u32, most: u32, count_to: u32| {
            let query = Query { node: (node, node_size), service: (name, name_size), hints, results, most, count_to };
            with_memory(call, |_, memory| lookup::get(memory, query))
        };
    linker.func_wrap(PREVIEW1, "sock_getaddrinfo", look_up)?;
    Ok(())
}

fn add_options(linker: &mut Linker<State<CoreWasi>>) -> wasmtime::Result<()> {
    linker.func_wrap(PREVIEW1, "sock_getsockopt", |call: Call<'_>, number: u32, level: u32, option: u32, to: u32, size_at: u32| {
        with_socket(call, number, |socket, memory| options::get(socket, memory, level, option, to, size_at))
    })?;
    linker.func_wrap(PREVIEW1, "sock_setsockopt", |call: Call<'_>, number: u32, level: u32, option: u32, at: u32, size: u32| {
        with_socket(call, number, |socket, memory| options::set(socket, memory, level, option, at, size))
    })?;
    Ok(())
}

/// Functions for all descriptors, which stand before Wasmtime's.
fn add_descriptors(linker: &mut Linker<State<CoreWasi>>) -> wasmtime::Result<()> {
    linker.func_wrap_async(PREVIEW1, "fd_close", |mut call: Call<'_>, (number,): (u32,)| {
        Box::new(async move {
            let (wasi, mut memory) = parts(&mut call)?;
            match wasi.sockets.remove(number) {
                Some(_closed) => Ok(0),
                None => preview1::fd_close(&mut wasi.preview1, &mut wasmtimes(&mut memory), number.cast_signed()).await,
            }
        })
    })?;
    linker.func_wrap_async(PREVIEW1, "fd_fdstat_get", |mut call: Call<'_>, (number, to): (u32, u32)| {
        Box::new(async move {
            let (wasi, mut memory) = parts(&mut call)?;
            match wasi.sockets.get(number) {
                Some(socket) => Ok(Errno::code(calls::status(socket, &mut memory, to))),
                None => {
                    let mut memory = wasmtimes(&mut memory);
                    preview1::fd_fdstat_get(&mut wasi.preview1, &mut memory, number.cast_signed(), to.cast_signed()).await
                }
            }
        })
    })?;
    linker.func_wrap(PREVIEW1, "fd_fdstat_set_flags", |mut call: Call<'_>, number: u32, flags: u32| {
        let (wasi, mut memory) = parts(&mut call)?;
        match wasi.sockets.get(number) {
            Some(socket) => Ok(Errno::code(calls::set_flags(socket, flags))),
            None => {
                let mut memory = wasmtimes(&mut memory);
                preview1::fd_fdstat_set_flags(&mut wasi.preview1, &mut memory, number.cast_signed(), flags.cast_signed())
            }
        }
    })?;
    linker.func_wrap_async(
        PREVIEW1,
        "poll_oneoff",
        |mut call: Call<'_>, (subscriptions, events, count, count_to): (u32, u32, u32, u32)| {
            Box::new(async move {
                let (wasi, mut memory) = parts(&mut call)?;
                let poll = Poll { subscriptions, events, count, count_to };
                poll::poll_oneoff(&mut wasi.preview1, &wasi.sockets, &mut memory, poll).await
            })
        },
    )?;
    Ok(())
}

/// Reading and writing, which stand before Wasmtime's.
fn add_streams(linker: &mut Linker<State<CoreWasi>>) -> wasmtime::Result<()> {
    linker.func_wrap_async(PREVIEW1, "fd_read", |mut call: Call<'_>, (number, list, count, size_to): (u32, u32, u32, u32)| {
        Box::new(async move {
            let (wasi, mut memory) = parts(&mut call)?;
            if let Some(socket) = wasi.sockets.get(number) {
                let message = Message { list, count, flags: 0 };
                return Ok(Errno::code(calls::receive(socket, &mut memory, message, size_to, None)));
            }
            let [number, list, count, size_to] = [number, list, count, size_to].map(u32::cast_signed);
            preview1::fd_read(&mut wasi.preview1, &mut wasmtimes(&mut memory), number, list, count, size_to).await
        })
    })?;
    linker.func_wrap_async(PREVIEW1, "fd_write", |mut call: Call<'_>, (number, list, count, size_to): (u32, u32, u32, u32)| {
        Box::new(async move {
            let (wasi, mut memory) = parts(&mut call)?;
            if let Some(socket) = wasi.sockets.get(number) {
                let message = Message { list, count, flags: 0 };
                return Ok(Errno::code(calls::send(socket, &mut memory, message, None, size_to)));
            }
            let [number, list, count, size_to] = [number, list, count, size_to].map(u32::cast_signed);
            preview1::fd_write(&mut wasi.preview1, &mut wasmtimes(&mut memory), number, list, count, size_to).await
        })
    })?;
    Ok(())
}

impl CoreWasi {
    /// A socket of ours, or the error for another descriptor.
    fn socket(&mut self, number: u32) -> Result<&OwnedFd> {
        match self.sockets.get(number) {
            Some(socket) => Ok(socket),
            // Whether there is such a descriptor is known to a function of Wasmtime's that knows no
            // sockets: 1 is `sdflags` for the reading side.
            None => {
                let answer = preview1::sock_shutdown(&mut self.preview1, &mut GuestMemory::Unshared(&mut []), number.cast_signed(), 1);
                Err(answer.ok().and_then(Errno::known).unwrap_or(Errno::BADF))
            }
        }
    }
}

/// The module's state and its memory, ready for functions of Wasmtime.
fn parts<'a>(call: &'a mut Call<'_>) -> wasmtime::Result<(&'a mut CoreWasi, Memory<'a>)> {
    let Some(Extern::Memory(memory)) = call.get_export("memory") else {
        return Err(wasmtime::Error::msg("it exports no memory of the name \"memory\", which WASI needs"));
    };
    let fuel = call.as_context_mut().hostcall_fuel();
    let (bytes, state) = memory.data_and_store_mut(call);
    preview1::WasiSnapshotPreview1::set_hostcall_fuel(&mut state.wasi.preview1, fuel);
    Ok((&mut state.wasi, Memory::new(bytes)))
}

fn wasmtimes<'a>(memory: &'a mut Memory<'_>) -> GuestMemory<'a> {
    GuestMemory::Unshared(memory.whole())
}

fn with_memory(mut call: Call<'_>, act: impl FnOnce(&mut CoreWasi, &mut Memory<'_>) -> Result<()>) -> i32 {
    let Ok((wasi, mut memory)) = parts(&mut call) else { return Errno::code(Err(Errno::FAULT)) };
    Errno::code(act(wasi, &mut memory))
}

fn with_socket(call: Call<'_>, number: u32, act: impl FnOnce(&OwnedFd, &mut Memory<'_>) -> Result<()>) -> i32 {
    with_memory(call, |wasi, memory| act(wasi.socket(number)?, memory))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn imports<const N: usize>(list: [(&str, usize); N]) -> Imports {
        list.map(|(name, parameters)| (name.to_owned(), parameters)).into()
    }

    #[test]
    fn a_module_is_for_wasmedge_if_preview_1_lacks_one_of_its_functions() {
        assert!(!is_for_wasmedge(&imports([("fd_write", 4), ("poll_oneoff", 4)])));
        assert!(!is_for_wasmedge(&imports([("sock_accept", 3), ("sock_recv", 6), ("sock_send", 5), ("sock_shutdown", 2)])));
        assert!(is_for_wasmedge(&imports([("sock_accept", 2)])));
        assert!(is_for_wasmedge(&imports([("fd_write", 4), ("sock_open", 3)])));
        assert!(is_for_wasmedge(&imports([("sock_getaddrinfo", 8)])));
        assert!(is_for_wasmedge(&imports([("sock_recv_v2", 6)])));
    }
}
