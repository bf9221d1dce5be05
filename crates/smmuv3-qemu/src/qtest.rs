//! The protocol of QEMU's qtest socket: one request line, one answer line, strictly in turn.
//!
//! Requests used here are `readb`, `readw`, `readl`, `readq` and their `write` twins. An answer is `OK`, `OK` and a
//! value, or `FAIL` or `ERR` and a reason. Lines that start with `IRQ` may stand between any two lines, and are
//! skipped.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::QemuError;

/// How long QEMU may take for one answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// No answer to the requests used here is longer than this many bytes.
const LONGEST_LINE: usize = 0x1000;

/// A connection to a QEMU, by which its physical address space is read and written.
///
/// May be used by many threads; requests take turns. Each method waits up to 10 s for its answer, and fails with
/// [`QemuError::Refused`] if QEMU says no. [`Closed`](QemuError::Closed), [`NoAnswer`](QemuError::NoAnswer) and
/// [`Malformed`](QemuError::Malformed) are final: every later request fails at once with the same error.
#[derive(Debug)]
pub struct Qtest {
    connection: Mutex<Connection>,
    patience: Duration,
}

#[derive(Debug)]
struct Connection {
    stream: BufReader<UnixStream>,
    /// Why the connection is no longer used.
    broken: Option<QemuError>,
    /// The first error there was.
    first_error: Option<QemuError>,
}

impl Qtest {
    /// Talks to the QEMU at the other end of `stream`.
    ///
    /// # Errors
    /// [`QemuError::Io`] if the host cannot set the time limits of the socket.
    pub fn new(stream: UnixStream) -> Result<Qtest, QemuError> {
        Qtest::with_patience(stream, PATIENCE)
    }

    fn with_patience(stream: UnixStream, patience: Duration) -> Result<Qtest, QemuError> {
        stream
            .set_read_timeout(Some(patience))
            .and_then(|()| stream.set_write_timeout(Some(patience)))
            .map_err(QemuError::io("set the time limit of the qtest socket"))?;
        let connection = Connection { stream: BufReader::new(stream), broken: None, first_error: None };
        Ok(Qtest { connection: Mutex::new(connection), patience })
    }

    /// Reads the byte at `addr`.
    pub fn read8(&self, addr: u64) -> Result<u8, QemuError> {
        self.read('b', addr)
    }

    /// Reads 16 bits at `addr`, little endian as all below.
    pub fn read16(&self, addr: u64) -> Result<u16, QemuError> {
        self.read('w', addr)
    }

    /// Reads 32 bits at `addr`.
    pub fn read32(&self, addr: u64) -> Result<u32, QemuError> {
        self.read('l', addr)
    }

    /// Reads 64 bits at `addr`.
    pub fn read64(&self, addr: u64) -> Result<u64, QemuError> {
        self.read('q', addr)
    }

    /// Writes the byte at `addr`.
    pub fn write8(&self, addr: u64, value: u8) -> Result<(), QemuError> {
        self.write('b', addr, value.into())
    }

    /// Writes 16 bits at `addr`.
    pub fn write16(&self, addr: u64, value: u16) -> Result<(), QemuError> {
        self.write('w', addr, value.into())
    }

    /// Writes 32 bits at `addr`.
    pub fn write32(&self, addr: u64, value: u32) -> Result<(), QemuError> {
        self.write('l', addr, value.into())
    }

    /// Writes 64 bits at `addr`.
    pub fn write64(&self, addr: u64, value: u64) -> Result<(), QemuError> {
        self.write('q', addr, value)
    }

    /// The first error that any request met.
    pub fn error(&self) -> Option<QemuError> {
        self.lock().first_error.clone()
    }

    fn read<T: TryFrom<u64>>(&self, width: char, addr: u64) -> Result<T, QemuError> {
        let malformed =
            |request: &str, answer: &str| QemuError::Malformed { request: request.into(), answer: answer.into() };
        self.request(format!("read{width} {addr:#x}\n"), |request, answer| {
            answer
                .strip_prefix("OK 0x")
                .and_then(|digits| u64::from_str_radix(digits, 16).ok())
                .and_then(|value| T::try_from(value).ok())
                .ok_or_else(|| malformed(request, answer))
        })
    }

    fn write(&self, width: char, addr: u64, value: u64) -> Result<(), QemuError> {
        let line = format!("write{width} {addr:#x} {value:#x}\n");
        self.request(line, |request, answer| match answer {
            "OK" => Ok(()),
            _ => Err(QemuError::Malformed { request: request.into(), answer: answer.into() }),
        })
    }

    /// Sends `line` and gives the request and its answer, both without line ends, to `parse`.
    fn request<T>(&self, line: String, parse: impl FnOnce(&str, &str) -> Result<T, QemuError>) -> Result<T, QemuError> {
        let mut connection = self.lock();
        if let Some(error) = &connection.broken {
            return Err(error.clone());
        }
        let request = line.trim_end();
        let result = connection.exchange(&line, self.patience).and_then(|answer| match answer.split(' ').next() {
            Some("FAIL" | "ERR") => Err(QemuError::Refused { request: request.into(), answer }),
            _ => parse(request, &answer),
        });
        if let Err(error) = &result {
            connection.first_error.get_or_insert_with(|| error.clone());
            // After a refusal the two sides still take turns. After anything else they may not.
            if !matches!(error, QemuError::Refused { .. }) {
                connection.broken = Some(error.clone());
            }
        }
        result
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// Sends `line` and waits for the answer.
    fn exchange(&mut self, line: &str, patience: Duration) -> Result<String, QemuError> {
        let request = line.trim_end();
        let deadline = Instant::now() + patience;
        let failed = |kind| match kind {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                QemuError::NoAnswer { request: request.into(), after: patience }
            }
            _ => QemuError::Closed { request: request.into() },
        };
        self.stream.get_mut().write_all(line.as_bytes()).map_err(|error| failed(error.kind()))?;
        loop {
            let answer = self.read_line(deadline).map_err(failed)?;
            if !answer.starts_with("IRQ ") {
                return Ok(answer);
            }
        }
    }

    /// The next whole line, without its end. A line may arrive in any number of pieces.
    ///
    /// The deadline is looked at before each piece, and the socket's own limit bounds the wait for one, so this
    /// returns within twice the limit.
    fn read_line(&mut self, deadline: Instant) -> Result<String, ErrorKind> {
        let mut line = Vec::new();
        loop {
            if Instant::now() >= deadline {
                return Err(ErrorKind::TimedOut);
            }
            let piece = match self.stream.fill_buf() {
                Ok([]) => return Err(ErrorKind::UnexpectedEof),
                Ok(piece) => piece,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.kind()),
            };
            let end = piece.iter().position(|byte| *byte == b'\n');
            let taken = end.unwrap_or(piece.len());
            line.extend_from_slice(&piece[..taken]);
            self.stream.consume(taken + usize::from(end.is_some()));
            // An overlong line is cut here: no parser takes it, and the connection ends as malformed.
            if end.is_some() || line.len() > LONGEST_LINE {
                let text = String::from_utf8_lossy(&line);
                return Ok(text.trim_end_matches('\r').to_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::{self, JoinHandle};

    /// A server that answers the nth request with the pieces of the nth script, each sent on its own, and then
    /// closes the socket. Its thread returns the requests it saw.
    fn server(scripts: &'static [&'static [&'static str]]) -> (Qtest, JoinHandle<Vec<String>>) {
        let (near, far) = UnixStream::pair().unwrap();
        let thread = thread::spawn(move || {
            let mut far = BufReader::new(far);
            let mut seen = Vec::new();
            for script in scripts {
                let mut line = String::new();
                far.read_line(&mut line).unwrap();
                seen.push(line);
                for piece in *script {
                    far.get_mut().write_all(piece.as_bytes()).unwrap();
                    thread::sleep(Duration::from_millis(5));
                }
            }
            seen
        });
        let qtest = Qtest::with_patience(near, Duration::from_secs(5)).unwrap();
        (qtest, thread)
    }

    #[test]
    fn every_width_is_asked_for_in_its_own_words() {
        let (qtest, thread) = server(&[
            &["OK 0x00000000000000ff\n"],
            &["OK 0x000000000000ffff\n"],
            &["OK 0x00000000ffffffff\n"],
            &["OK 0xffffffffffffffff\n"],
            &["OK\n"],
            &["OK\n"],
            &["OK\n"],
            &["OK\n"],
        ]);
        assert_eq!(qtest.read8(0x10).unwrap(), 0xff);
        assert_eq!(qtest.read16(0x20).unwrap(), 0xffff);
        assert_eq!(qtest.read32(0x30).unwrap(), 0xffff_ffff);
        assert_eq!(qtest.read64(0x40).unwrap(), u64::MAX);
        qtest.write8(0x10, 1).unwrap();
        qtest.write16(0x20, 2).unwrap();
        qtest.write32(0x30, 3).unwrap();
        qtest.write64(0x40_1000_0000, u64::MAX).unwrap();
        assert_eq!(
            thread.join().unwrap().concat(),
            "readb 0x10\nreadw 0x20\nreadl 0x30\nreadq 0x40\n\
             writeb 0x10 0x1\nwritew 0x20 0x2\nwritel 0x30 0x3\nwriteq 0x4010000000 0xffffffffffffffff\n"
        );
        assert!(qtest.error().is_none());
    }

    #[test]
    fn a_line_may_arrive_in_pieces_and_bring_the_next_along() {
        let (qtest, thread) = server(&[
            &["O", "K 0x00000000", "0000002a", "\n"],
            &["OK\r\n"],
            // The second half of an interrupt line arrives after the answer's first half was read.
            &["IRQ ra", "ise 3\nOK 0x", "7\nIRQ lower 3\n"],
            &["OK 0x8\n"],
        ]);
        assert_eq!(qtest.read32(0).unwrap(), 0x2a);
        qtest.write32(0, 0).unwrap();
        assert_eq!(qtest.read32(0).unwrap(), 7);
        assert_eq!(qtest.read32(0).unwrap(), 8);
        thread.join().unwrap();
    }

    #[test]
    fn interrupt_lines_are_no_answers() {
        let (qtest, thread) =
            server(&[&["IRQ raise 0\nIRQ lower 0\n", "IRQ raise 1\nOK 0x1\n"], &["IRQ raise 2\n", "OK\n"]]);
        assert_eq!(qtest.read32(0).unwrap(), 1);
        qtest.write32(0, 0).unwrap();
        thread.join().unwrap();
    }

    #[test]
    fn a_refusal_is_an_error_and_the_next_request_goes_on() {
        let (qtest, thread) = server(&[&["FAIL Unknown command 'readl'\n"], &["ERR no such thing\n"], &["OK 0x5\n"]]);
        assert_eq!(
            qtest.read32(0x44).unwrap_err().to_string(),
            "QEMU refused `readl 0x44`: FAIL Unknown command 'readl'"
        );
        assert!(matches!(qtest.write8(0, 0), Err(QemuError::Refused { .. })));
        assert_eq!(qtest.read32(0).unwrap(), 5);
        // The first error is the one that is remembered.
        assert!(qtest.error().unwrap().to_string().starts_with("QEMU refused `readl"));
        thread.join().unwrap();
    }

    #[test]
    fn a_closed_socket_is_an_error_now_and_for_ever() {
        // It closes in the middle of a line.
        let (qtest, thread) = server(&[&["OK 0x12"]]);
        let error = qtest.read32(0x9050000).unwrap_err();
        assert_eq!(error.to_string(), "QEMU closed the qtest socket at `readl 0x9050000`");
        thread.join().unwrap();
        // Later requests fail with the same error, and do not touch the socket.
        assert_eq!(qtest.write32(0x10, 0).unwrap_err().to_string(), error.to_string());
        assert_eq!(qtest.error().unwrap().to_string(), error.to_string());
    }

    #[test]
    fn nonsense_ends_the_connection() {
        for script in [
            &[&["OK\n"] as &[_]] as &'static [&[_]], // a read without a value
            &[&["OK 0xnine\n"]],
            &[&["OK 0x100000000\n"]], // wider than was asked for
            &[&["hello\n"]],
            &[&["\n"]],
        ] {
            let (qtest, thread) = server(script);
            assert!(matches!(qtest.read32(0), Err(QemuError::Malformed { .. })));
            assert!(matches!(qtest.write32(0, 0), Err(QemuError::Malformed { .. })));
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_line_without_end_is_cut_off() {
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(&[b'x'; 2 * LONGEST_LINE]).unwrap();
        let qtest = Qtest::with_patience(near, Duration::from_secs(5)).unwrap();
        assert!(matches!(qtest.read32(0), Err(QemuError::Malformed { .. })));
    }

    #[test]
    fn a_server_that_never_answers_is_not_waited_for_for_ever() {
        // One is silent, the other talks without ever answering.
        let (near, _silent) = UnixStream::pair().unwrap();
        let patience = Duration::from_millis(50);
        let qtest = Qtest::with_patience(near, patience).unwrap();
        assert!(matches!(qtest.read32(0), Err(QemuError::NoAnswer { .. })));

        let (near, mut far) = UnixStream::pair().unwrap();
        let talker = thread::spawn(move || while far.write_all(b"IRQ raise 0\n").is_ok() {});
        let qtest = Qtest::with_patience(near, patience).unwrap();
        assert!(matches!(qtest.read32(0), Err(QemuError::NoAnswer { .. })));
        drop(qtest);
        talker.join().unwrap();
    }
}
