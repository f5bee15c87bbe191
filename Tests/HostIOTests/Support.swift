// What several of these suites need: temporary folders, files that can be told apart, and threads that have a
// descriptor table of their own, in which a leak shows whatever runs beside them.

import CLinux
import Foundation
import HostIO
import Testing

/// A folder that goes away with the value.
final class TemporaryFolder: Sendable {
  let path: String

  init() throws {
    var template = Array("/tmp/hostio-XXXXXX".utf8CString)
    guard mkdtemp(&template) != nil else { throw HostError.system(call: "mkdtemp", code: errno) }
    path = template.withUnsafeBufferPointer { String(cString: $0.baseAddress!) }
  }

  deinit { try? FileManager.default.removeItem(atPath: path) }

  func file(_ name: String) -> String { path + "/" + name }

  var names: [String] {
    ((try? FileManager.default.contentsOfDirectory(atPath: path)) ?? []).sorted()
  }
}

/// A new memfd of some bytes.
func memoryFile(_ name: String = "hostio", bytes: Int = 4096, flags: UInt32 = CLX_MFD_CLOEXEC) throws
  -> OwnedFD
{
  let raw = clx_memfd_create(name, flags)
  guard raw >= 0 else { throw HostError.system(call: "memfd_create", code: errno) }
  let file = OwnedFD(adopting: raw)
  guard ftruncate(raw, bytes) == 0 else { throw HostError.system(call: "ftruncate", code: errno) }
  return file
}

/// What tells one memfd from all others.
func inode(of raw: Int32) -> UInt64? {
  var facts = stat()
  return fstat(raw, &facts) == 0 ? UInt64(facts.st_ino) : nil
}

func isOpen(_ raw: Int32) -> Bool { clx_fcntl_int(raw, F_GETFD, 0) >= 0 }

func isCloseOnExec(_ raw: Int32) -> Bool { clx_fcntl_int(raw, F_GETFD, 0) & FD_CLOEXEC != 0 }

/// The open descriptors of the calling thread's table, the standard three left aside.
func openDescriptors() -> [Int32] { (3..<2048).filter { isOpen($0) } }

/// A failure that a test's other thread brings back.
struct Unexpected: Error, CustomStringConvertible {
  let description: String
  init(_ description: String) { self.description = description }
}

/// Runs `body` on a thread and returns what it returned; throws where it does not end in time.
func onThread<Value: Sendable>(
  _ name: String = "test", seconds: Int = 60, _ body: @escaping @Sendable () throws -> Value
) throws -> Value {
  let reply = Reply<Result<Value, any Error>>()
  let thread = try PinnedThread(name: name, cpus: []) { reply.fulfil(Result { try body() }) }
  guard let result = reply.wait(timeout: .seconds(seconds)) else {
    throw Unexpected("still running after \(seconds) s")
  }
  thread.join()
  return try result.get()
}

/// A function of the C library that the headers do not show to Swift.
func libraryCall<Call>(_ name: String, as type: Call.Type) throws -> Call {
  guard let symbol = dlsym(dlopen(nil, RTLD_NOW), name) else { throw Unexpected("no \(name)") }
  return unsafeBitCast(symbol, to: type)
}

/// The same on a thread whose descriptor table is its own, and empty: what is open in it at the end was
/// leaked by `body`.
func withOwnDescriptors<Value: Sendable>(
  _ body: @escaping @Sendable () throws -> Value
) throws -> (value: Value, leaked: [Int32]) {
  try onThread("own-table") {
    let unshare = try libraryCall("unshare", as: (@convention(c) (Int32) -> Int32).self)
    let closeRange = try libraryCall(
      "close_range", as: (@convention(c) (UInt32, UInt32, Int32) -> Int32).self)
    let files: Int32 = 0x400  // CLONE_FILES
    guard unshare(files) == 0, closeRange(3, .max, 0) == 0 else {
      throw Unexpected("unshare or close_range: \(errno)")
    }
    let value = try body()
    return (value, openDescriptors())
  }
}

/// Takes every descriptor that the calling thread's table may still have but `spare`. Only with a table of
/// its own.
func exhaustDescriptors(spare: Int = 0) throws -> [Int32] {
  var taken: [Int32] = []
  while true {
    let copy = clx_fcntl_int(0, F_DUPFD_CLOEXEC, 3)
    if copy < 0 { break }
    taken.append(copy)
    if taken.count > 2_000_000 { throw Unexpected("no limit of descriptors in reach") }
  }
  for _ in 0..<spare { if let last = taken.popLast() { close(last) } }
  return taken
}
