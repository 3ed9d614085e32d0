// Runs a generated EdgeFace.swift over cases from a file: crops and flattened answers go to another.
#if canImport(Darwin)
import Darwin
#else
import Glibc
#endif

func flat(_ value: Float) -> [Float] { [value] }
func flat(_ values: [Float]) -> [Float] { values }
func flat(_ points: [FacePoint]) -> [Float] { points.flatMap { [$0.x, $0.y] } }
func flat(_ choice: FaceChoice) -> [Float] { [Float(choice.index)] + choice.probabilities }
func flat(_ marks: [FaceAttribute]) -> [Float] { marks.flatMap { [$0.present ? 1 : 0, $0.probability] } }

let cases = fopen(CommandLine.arguments[1], "rb")!
let answers = fopen(CommandLine.arguments[2], "wb")!
let sizes: [(String, Int)] = [@SIZES@]

func read<T>(_ count: Int, _ zero: T) -> [T] {
    var values = [T](repeating: zero, count: count)
    let bytes = count * MemoryLayout<T>.stride
    precondition(values.withUnsafeMutableBytes { fread($0.baseAddress, 1, bytes, cases) } == bytes)
    return values
}

for _ in 0..<read(1, Int32(0))[0] {
    let size = read(2, Int32(0)).map { Int($0) }
    let crop = read(3, Float(0))
    let rgb = read(size[0] * size[1] * 3, UInt8(0))
    var rgba = [UInt8](repeating: 77, count: size[0] * size[1] * 4)
    for at in 0..<size[0] * size[1] {
        for channel in 0..<3 { rgba[4 * at + channel] = rgb[3 * at + channel] }
    }
    var outputs = [String: [Float]]()
    for (name, count) in sizes { outputs[name] = read(count, Float(0)) }
    let place = FaceCrop(centerX: crop[0], centerY: crop[1], side: crop[2])
    let picture = FacePicture(rgba: rgba, width: size[0], height: size[1])
    var face = @TENSOR@
    fwrite(&face, MemoryLayout.stride(ofValue: face[0]), face.count, answers)
    let answer = try FaceContract.decode(outputs, place)
    var values = [Float]()
    @PUTS@
    let points: [(Float, Float)] = [(10, 20), (30.5, 20), (20, 30), (12, 44), (28, 43)]
    for around in [
        FaceCrop(aroundBoxLeft: 10.25, top: 20.125, width: 33.5, height: 47.75),
        FaceCrop(aroundLandmarks: points.map { FacePoint(x: $0.0, y: $0.1) }),
    ] {
        values += [around.centerX, around.centerY, around.side]
    }
    fwrite(&values, 4, values.count, answers)
}
fclose(answers)
