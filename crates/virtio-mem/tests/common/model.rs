//! A device at the driver's channel: it keeps its word unless it is told otherwise, and counts what it is asked.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::cell::RefCell;
use std::rc::Rc;

use pagefold_virtio_mem::{Channel, ChannelError};
use pagefold_virtio_mem_spec::{
    ConfigSpace, Features, PlugState, Request, RequestType, Response, ResponseType,
};

/// Answers a request instead of the device.
pub type Answers = Box<dyn FnMut(&mut State, &Request) -> Option<Result<Response, ChannelError>>>;

/// Changes what the config space says.
pub type Says = Box<dyn FnMut(&mut ConfigSpace)>;

pub struct State {
    pub block: u64,
    pub addr: u64,
    pub region: u64,
    pub usable: u64,
    pub requested: u64,
    pub node: Option<u16>,
    /// A byte for each block, 1 where it is plugged.
    pub plugged: Vec<u8>,
    /// Config interrupts that nobody has looked at.
    pub interrupts: u32,
    pub requests: u64,
    pub reads: u64,
    pub answers: Option<Answers>,
    pub says: Option<Says>,
}

impl State {
    pub fn plugged_bytes(&self) -> u64 {
        self.plugged.iter().map(|&plugged| u64::from(plugged)).sum::<u64>() * self.block
    }

    pub fn config(&self) -> ConfigSpace {
        ConfigSpace {
            block_size: self.block.into(),
            node_id: self.node.unwrap_or(0).into(),
            addr: self.addr.into(),
            region_size: self.region.into(),
            usable_region_size: self.usable.into(),
            requested_size: self.requested.into(),
            plugged_size: self.plugged_bytes().into(),
            ..ConfigSpace::default()
        }
    }

    /// What the specification wants.
    pub fn honestly(&mut self, request: &Request) -> Response {
        let Ok(kind) = RequestType::try_from(request.kind.get()) else {
            return Response::new(ResponseType::Error);
        };
        if kind == RequestType::UnplugAll {
            self.plugged.fill(0);
            return Response::new(ResponseType::Ack);
        }
        let (offset, blocks) =
            (request.addr.get().wrapping_sub(self.addr), u64::from(request.nb_blocks.get()));
        let end = offset.saturating_add(blocks * self.block);
        if blocks == 0 || !offset.is_multiple_of(self.block) || end > self.usable {
            return Response::new(ResponseType::Error);
        }
        let range = (offset / self.block) as usize..(end / self.block) as usize;
        let plugged = self.plugged[range.clone()].iter().filter(|&&plugged| plugged == 1).count() as u64;
        let is_plug = kind == RequestType::Plug;
        match kind {
            RequestType::State if plugged == blocks => Response::state(PlugState::Plugged),
            RequestType::State if plugged == 0 => Response::state(PlugState::Unplugged),
            RequestType::State => Response::state(PlugState::Mixed),
            _ if is_plug && self.plugged_bytes() + blocks * self.block > self.requested => {
                Response::new(ResponseType::Nack)
            }
            _ if plugged != if is_plug { 0 } else { blocks } => Response::new(ResponseType::Error),
            _ => {
                self.plugged[range].fill(u8::from(is_plug));
                Response::new(ResponseType::Ack)
            }
        }
    }
}

/// Clones are the same device.
#[derive(Clone)]
pub struct Model(Rc<RefCell<State>>);

impl Model {
    /// A device of `region` bytes at `addr`, in blocks of 2 MiB.
    pub fn new(addr: u64, region: u64, requested: u64) -> Self {
        Self::with_block(2 << 20, addr, region, requested)
    }

    pub fn with_block(block: u64, addr: u64, region: u64, requested: u64) -> Self {
        Model(Rc::new(RefCell::new(State {
            block,
            addr,
            region,
            usable: region,
            requested,
            node: None,
            plugged: vec![0; (region / block) as usize],
            interrupts: 0,
            requests: 0,
            reads: 0,
            answers: None,
            says: None,
        })))
    }

    pub fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.borrow_mut())
    }

    /// The host asks for so much.
    pub fn resize(&self, bytes: u64) {
        self.with(|state| {
            state.requested = bytes;
            state.interrupts += 1;
        });
    }

    pub fn answer(
        &self,
        answers: impl FnMut(&mut State, &Request) -> Option<Result<Response, ChannelError>> + 'static,
    ) {
        self.with(|state| state.answers = Some(Box::new(answers)));
    }

    pub fn be_honest(&self) {
        self.with(|state| (state.answers, state.says) = (None, None));
    }

    pub fn plugged(&self) -> u64 {
        self.with(|state| state.plugged_bytes())
    }

    pub fn requests(&self) -> u64 {
        self.with(|state| state.requests)
    }
}

impl Channel for Model {
    fn features(&self) -> Features {
        self.with(|state| match state.node {
            Some(_) => Features::ACPI_PXM | Features::UNPLUGGED_INACCESSIBLE,
            None => Features::UNPLUGGED_INACCESSIBLE,
        })
    }
    fn config(&mut self) -> Result<ConfigSpace, ChannelError> {
        self.with(|state| {
            state.reads += 1;
            let mut config = state.config();
            if let Some(says) = &mut state.says {
                says(&mut config);
            }
            Ok(config)
        })
    }
    fn config_changed(&mut self) -> bool {
        self.with(|state| {
            let told = state.interrupts > 0;
            state.interrupts = state.interrupts.saturating_sub(1);
            told
        })
    }
    fn request(&mut self, request: Request) -> Result<Response, ChannelError> {
        self.with(|state| {
            state.requests += 1;
            let mut answers = state.answers.take();
            let answer = answers.as_mut().and_then(|answers| answers(state, &request));
            state.answers = answers;
            answer.unwrap_or_else(|| Ok(state.honestly(&request)))
        })
    }
}
