// Runs a generated EdgeFace.kt over cases from a file: what the model is given and flattened answers go to another.
import ai.edgeface.EdgeFace
import ai.edgeface.FaceAttribute
import ai.edgeface.FaceChoice
import ai.edgeface.FaceCrop
import ai.edgeface.FacePoint
import android.graphics.Bitmap
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.tensorflow.lite.DataType
import org.tensorflow.lite.Interpreter

fun flat(answer: Any): List<Float> = when (answer) {
    is Float -> listOf(answer)
    is FloatArray -> answer.toList()
    is FaceChoice -> listOf(answer.index.toFloat()) + answer.probabilities.toList()
    is FacePoint -> listOf(answer.x, answer.y)
    is FaceAttribute -> listOf(if (answer.present) 1f else 0f, answer.probability)
    is List<*> -> answer.flatMap { flat(it!!) }
    else -> error("${answer::class}")
}

fun main(words: Array<String>) {
    val sizes = listOf(@SIZES@)
    val cases = ByteBuffer.wrap(File(words[0]).readBytes()).order(ByteOrder.LITTLE_ENDIAN)
    val whole = words[2] == "int8"
    Interpreter.type = if (whole) DataType.INT8 else DataType.FLOAT32
    File(words[1]).outputStream().use { answers ->
        repeat(cases.getInt()) {
            val width = cases.getInt()
            val height = cases.getInt()
            val crop = FaceCrop(cases.getFloat(), cases.getFloat(), cases.getFloat())
            val pixels = IntArray(width * height) {
                (255 shl 24) or (cases.get().toInt() and 255 shl 16) or (cases.get().toInt() and 255 shl 8) or
                    (cases.get().toInt() and 255)
            }
            for ((name, size) in sizes) {
                val values = FloatArray(size) { cases.getFloat() }
                val grid = Interpreter.GRID
                val bytes = ByteBuffer.allocate(size * if (whole) 1 else 4).order(ByteOrder.nativeOrder())
                for (value in values) {
                    if (whole) bytes.put((value / grid.scale + grid.zeroPoint).toInt().toByte()) else bytes.putFloat(value)
                }
                Interpreter.ANSWERS[name] = bytes.array()
            }
            val answer = EdgeFace(ByteBuffer.allocate(0)).use { it.run(Bitmap(pixels, width, height), crop) }
            answers.write(Interpreter.seen)
            val points = listOf(10f to 20f, 30.5f to 20f, 20f to 30f, 12f to 44f, 28f to 43f)
            val around = listOf(
                FaceCrop.aroundBox(10.25, 20.125, 33.5, 47.75),
                FaceCrop.aroundLandmarks(points.map { FacePoint(it.first, it.second) }),
            )
            val values = listOf<List<Float>>(@PUTS@).flatten() +
                around.flatMap { listOf(it.centerX, it.centerY, it.side) }
            val bytes = ByteBuffer.allocate(4 * values.size).order(ByteOrder.LITTLE_ENDIAN)
            values.forEach { bytes.putFloat(it) }
            answers.write(bytes.array())
        }
    }
}
