//! HTTP/2 written by hand, for a peer that no library would be: frames as bytes (RFC 9113), and
//! header blocks without Huffman codes (RFC 7541).

/// What a connection begins with.
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Types of frames, by their numbers.
pub const DATA: u8 = 0;
/// As [`DATA`].
pub const HEADERS: u8 = 1;
/// As [`DATA`].
pub const PRIORITY: u8 = 2;
/// As [`DATA`].
pub const RST_STREAM: u8 = 3;
/// As [`DATA`].
pub const SETTINGS: u8 = 4;
/// As [`DATA`].
pub const PING: u8 = 6;
/// As [`DATA`].
pub const GOAWAY: u8 = 7;
/// As [`DATA`].
pub const WINDOW_UPDATE: u8 = 8;
/// As [`DATA`].
pub const CONTINUATION: u8 = 9;

/// Flag of HEADERS and DATA.
pub const END_STREAM: u8 = 1;
/// Flag of HEADERS and CONTINUATION.
pub const END_HEADERS: u8 = 4;

/// A frame that says how long it is.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    claiming(payload.len() as u32, kind, flags, stream, payload)
}

/// A frame that says that it has `length` bytes.
pub fn claiming(length: u32, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = length.to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Preface and settings: how a good connection begins.
pub fn greeting() -> Vec<u8> {
    [&PREFACE[..], &frame(SETTINGS, 0, 0, &[])].concat()
}

/// The header block of a gRPC call.
pub fn call(path: &str, token: Option<&str>) -> Vec<u8> {
    // :method POST and :scheme http by index, :path, :authority by name's index.
    let mut block = vec![0x83, 0x86, 0x04];
    text(&mut block, path);
    block.push(0x01);
    text(&mut block, "localhost");
    field(&mut block, "content-type", "application/grpc");
    field(&mut block, "te", "trailers");
    if let Some(token) = token {
        field(&mut block, "authorization", token);
    }
    block
}

/// Appends a header that no table keeps.
pub fn field(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0);
    text(block, name);
    text(block, value);
}

fn text(block: &mut Vec<u8>, text: &str) {
    let length = text.len();
    if length < 127 {
        block.push(length as u8);
    } else {
        block.push(127);
        let mut rest = length - 127;
        while rest >= 128 {
            block.push((rest % 128) as u8 | 128);
            rest /= 128;
        }
        block.push(rest as u8);
    }
    block.extend(text.as_bytes());
}

/// A gRPC message that says that it has `length` bytes.
pub fn message(length: u32, bytes: &[u8]) -> Vec<u8> {
    [&[0], &length.to_be_bytes()[..], bytes].concat()
}

/// What a peer said before it fell silent or closed: `GOAWAY 11`, `RST_STREAM 7`, `HEADERS`.
pub fn said(mut bytes: &[u8]) -> Vec<String> {
    let mut said = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<9>() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let Some((payload, rest)) = rest.split_at_checked(length) else { break };
        let code = |at: usize| {
            let code = payload.get(at..at + 4).and_then(|b| b.try_into().ok());
            u32::from_be_bytes(code.unwrap_or_default())
        };
        match head[3] {
            GOAWAY => said.push(format!("GOAWAY {}", code(4))),
            RST_STREAM => said.push(format!("RST_STREAM {}", code(0))),
            HEADERS => said.push("HEADERS".to_owned()),
            _ => {}
        }
        bytes = rest;
    }
    said
}
