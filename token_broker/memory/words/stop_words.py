"""Words that say little in a question: function words of each language, and what many questions ask in the same way.

They are written as people write them, and folded when they are loaded. A word of one language may say much in another
(German `war`, English `war`): so a question's language is guessed from these words, and its words alone are left out.
"""

from typing import Final

from token_broker.memory.words.folding import fold

__all__ = [
    "COMPOUNDING",
    "DECISIVE",
    "FRAMES",
    "STOP_GRAMS",
    "STOP_RUNS",
    "STOP_SIGNS",
    "WEAK_SIGNS",
    "stop_words_of",
]

_STOP_WORDS: Final = {
    "en": """hey good others else another a an the and or but if then than so as of at by for from in into on onto to
        up with about over after before again is am are was were be been being do does did done doing have has
        had having will would shall should can could may might must i me my mine myself you your yours he him
        his she her hers it its we us our ours they them their theirs this that these those there here what
        which who whom whose when where why how not no nor yes don t s d ll re ve m isn aren wasn didn doesn won
        any some all just also too very really please tell told say said says remember recall know knew think
        called call going go get got let make made want wanted need like talk talked talking speak spoke mention
        mentioned discuss discussed ever once still now much many ok okay hello hi thanks thank out off only own
        same such during while because between both each more most other first last kind sort thing things
        something anything remind reminds reminded wonder wondering happen""",
    "de": """hallo guten der die das den dem des ein eine einen einem einer eines und oder aber
        wenn dann als wie so von vom bei beim mit nach seit aus zu zum zur für um an am auf in im ins über unter
        vor hinter zwischen durch gegen ohne bis ist bin bist sind seid war warst waren wart sein gewesen hat
        habe haben hast hatte hatten hab wird werde werden wurde worden würde können kann kannst konnte soll
        sollte muss musst müssen will willst wollte darf mag möchte ich mich mir mein meine meinen meinem meiner
        meines du dich dir dein deine deinen deinem deiner er ihn ihm sie ihr ihre ihren ihrem es wir uns unser
        unsere unseren unserem euch euer man sich dieser diese dieses diesen diesem jener was welche welcher
        welches welchen welchem wer wen wem wessen wann wo wohin woher warum wieso weshalb nicht kein keine
        keinen nein ja auch nur noch schon mal doch denn da hier dort nun jetzt bitte sag sage gesagt sagte
        sagen erzählt erzählen erinnerst erinnern weißt weiß wissen heißt heißen heiße nochmal eigentlich etwas
        alles viel viele sehr gibt geben ging gehen geht mache machen macht gemacht reden geredet gesprochen
        hallo danke welch zuletzt dran damit davon dazu daran darüber worum könntest könnte könnten könnt
        wolltest wollten möchtest wüsste hattest frage fragen erinnere geworden""",
    "nl": """hallo goedemorgen de het een en of maar als dan zo van bij met naar uit te tot voor
        om aan op in over onder door tegen zonder is ben bent zijn was waren geweest heb hebt heeft hebben had
        hadden word wordt worden werd zal zou kan kun kunnen kon moet moeten wil willen wou mag ik mij me mijn
        jij je jou jouw hij hem zij ze haar het wij we ons onze jullie hun hen dit dat deze die er hier daar wat
        welke welk wie wanneer waar waarom hoe niet geen nee ja ook nog maar al eens toch dus nu gezegd zei zeg
        vertel verteld weet weten heet heten herinner herinneren gaat gaan doen doet veel iets alles naar alweer
        over heette kunt zouden graag herinnert""",
    "sv": """hej tack en ett den det de och eller men om då så av vid med efter från till för i
        på över under genom mot utan är var varit vara har hade ha blir blev bli ska skulle kan kunde måste vill
        ville får fick jag mig min mitt mina du dig din ditt dina han honom hans hon henne hennes vi oss vår
        vårt våra ni er de dem deras denna detta dessa där här vad vilken vilket vilka vem när var varför hur
        inte ingen nej ja också bara än redan nu sa sade sagt säga berätta berättade vet veta heter hette kommer
        ihåg mycket något allt gör göra minns påminn""",
    "da": """hej hei tak takk en et den det de og eller men hvis da så af ved med efter fra til
        for i på over under gennem mod uden er var været være har havde have bliver blev blive skal skulle kan
        kunne må måtte vil ville får fik jeg mig min mit mine du dig din dit dine han ham hans hun hende hendes
        vi os vores jer de dem deres denne dette disse der her hvad hvilken hvilket hvilke hvem hvornår hvor
        hvorfor hvordan ikke ingen nej ja også bare kun nu sagde sagt sige fortalte fortæl ved vide hedder hed
        husker meget noget alt gør gøre jeg ikkje eg mind minder""",
    "fr": """salut bonsoir le la les l un une des du de d et ou mais si donc que qu comme à au
        aux en dans sur sous par pour avec sans chez vers entre depuis est suis es sommes êtes sont était étais
        étaient été être ai as a avons avez ont avait avais avoir sera serait peut peux pouvez pouvait doit dois
        faut veux veut voulait je j me m moi mon ma mes tu te t toi ton ta tes il elle on nous notre nos vous
        votre vos ils elles leur leurs lui se s son sa ses ce c cet cette ces cela ça ci y ne n pas plus non oui
        aussi très bien quoi quel quelle quels quelles qui quand où pourquoi comment combien dit disais dire dis
        raconté parlé parler rappelles rappelle souviens souvient sais sait savoir appelle appelles fait faire
        fais va vais aller déjà encore tout tous toute toutes merci bonjour quelque chose là ici pourrais
        pourrait pourriez voudrais rappeler rappelez souvenez""",
    "es": """buenos buenas el la los las lo un una unos unas y e o u pero si que de del a al en
        con sin por para sobre entre hasta desde hacia como más es soy eres somos son era eras eran fue fui ser
        sido está estoy estás están estaba estar he has ha hemos han había haber hay tengo tienes tiene tienen
        tenía tener puede puedo puedes podía debe debo quiero quiere quieres quería voy va vas ir yo me mi mis
        mío tú te ti tu tus él ella ello nos nosotros nuestro nuestra usted ustedes ellos ellas les le se su sus
        este esta esto estos estas ese esa eso esos esas aquel aquella ahí allí aquí qué cuál cuáles quién
        quiénes cuándo dónde adónde cómo cuánto cuánta cuántos por qué no ni sí también muy ya todo todos algo
        dije dijo dijiste decir dicho conté contaste recuerdas recuerda recuerdo acuerdas sabes sabe sé saber
        llama llamo llamas llamaba hacer hago hace hizo gracias hola hablamos hablar dime podrías podría podrían
        quisiera recordar recordarme recuérdame decirme acuerdes""",
    "it": """buongiorno il lo la i gli le l un uno una e ed o ma se che di del dello della dei
        degli delle a al allo alla ai agli alle da dal dalla in nel nella nei nelle con su sul sulla per tra fra
        come più è sono sei siamo siete era ero erano stato stata essere ho hai ha abbiamo avete hanno avevo
        aveva avere c ci può posso puoi potevo deve devo voglio vuoi vuole volevo io mi me mio mia miei mie tu
        ti te tuo tua tuoi tue lui lei noi nostro nostra voi vostro loro si suo sua suoi sue questo questa
        questi queste quello quella quelli quelle ciò qui qua lì là cosa che quale quali chi quando dove perché
        come quanto quanta quanti non né no sì anche molto già tutto tutti qualcosa detto dissi dire dicevo
        raccontato ricordi ricorda ricordo sai sa so sapere chiama chiamo chiami chiamava fare faccio fa va vado
        andare grazie ciao parlato dimmi d potresti potrebbe vorrei ricordarmi ricordare sapresti dirmi""",
    "pt": """bom boa o a os as um uma uns umas e ou mas se que de do da dos das a ao à aos às em
        no na nos nas num numa com sem por pelo pela para pra sobre entre até desde como mais é sou és somos são
        era eram foi fui ser sido está estou estás estão estava estar hei há tem tenho tens têm tinha ter pode
        posso podes podia deve devo quero quer queria vou vai ir eu me mim meu minha meus minhas tu te ti teu
        tua teus tuas você vocês ele ela eles elas nós nosso nossa lhe se seu sua seus suas este esta isto estes
        estas esse essa isso esses essas aquele aquela aquilo aí ali aqui que qual quais quem quando onde aonde
        porque porquê como quanto quanta quantos não nem sim também muito já tudo todos algo disse dizer dito
        falei falou falamos contei lembra lembras lembro sabe sabes sei saber chama chamo chamava fazer faço faz
        fez obrigado obrigada olá poderia poderias podias gostava gostaria lembrar lembrares""",
    "ro": """bună salut un o unui unei și sau dar dacă că de la în din pe cu fără pentru despre
        între până după ca mai este sunt ești suntem era eram erau fost fi am ai are avem aveți au avea poate
        pot poți trebuie vreau vrei vrea eu mă mine meu mea mei mele tu te tine tău ta tăi tale el ea noi nostru
        noastră voi vostru ei ele lor se său sa acest această acesta aceasta acești aceste acel acea aici acolo
        ce care cine când unde cum cât câtă câți nu nici da și foarte deja tot toate ceva spus zis spune
        amintești știi știe știu numește numesc cheamă face fac îmi îți își al ale a lui ii le mi ti putea puteai
        aminti""",
    "pl": """cześć dzień dobry i oraz lub albo ale jeśli jeżeli że żeby jak niż tak z ze od do na
        w we o u po przy przed za nad pod między bez dla przez jest jestem jesteś jesteśmy są był była było były
        byłem byłam być będzie będę mam masz ma mamy mają miał miała mieć może mogę możesz muszę musi trzeba
        chcę chce chciał ja mnie mi mną mój moja moje moim mojej mojego moją ty ciebie ci cię tobą twój twoja
        twoje on jego jemu go mu ona jej ją my nas nam nasz nasza wy was wam oni one ich im się siebie swój ten
        ta to te ci tego tej tych tym tamten tu tutaj tam co czego czym jaki jaka jakie jaką jakiej który która
        które kto kogo kiedy gdzie dokąd skąd dlaczego czemu ile nie tak też także już jeszcze bardzo wszystko
        coś mówiłem mówiłam mówił powiedziałem powiedział powiedz pamiętasz wiesz wie wiem nazywa nazywam
        nazywał wabi robi robić czy no proszę dzięki mógłbyś mogłabyś chciałbym chciałabym przypomnij przypomnieć""",
    "cs": """ahoj dobrý a i nebo ale jestli že aby jak než tak z ze od do na v ve o u po při před
        za nad pod mezi bez pro přes k ke s se je jsem jsi jsme jsou byl byla bylo byly být bude budu mám máš má
        máme mají měl měla mít může můžu musím musí chci chce já mě mně mi mnou můj moje má mého mému mojí moji
        ty tebe tobě ti tě tvůj tvoje on jeho jemu ho mu ona její ji my nás nám náš naše vy vás vám oni jich jim
        si svůj ten ta to ti ty toho té tam tady zde co čeho jaký jaká jaké který která které kdo koho kdy kde
        kam odkud proč kolik ne ano taky také už ještě velmi všechno něco říkal říkala řekl řekni pamatuješ víš
        ví vím jmenuje jmenuju jmenoval dělá dělat prosím mohl mohla bys chtěl chtěla připomeň připomenout""",
    "ru": """привет здравствуйте спасибо и или а но если то что чтобы как чем так с со от до на в
        во о об обо у по при перед за над под между без для через из к ко есть был была было были быть будет
        буду имею имеет может могу можешь нужно надо хочу хочет я меня мне мной мой моя моё мои моего моей моему
        моих моим мою ты тебя тебе тобой твой твоя твоё он его ему им она её ей мы нас нам наш наша наши вы вас
        вам ваш они их ими себя себе свой своя этот эта это эти этого этой тот та те того той там тут здесь туда
        какой какая какое какие какую каком какого кто кого кому чего чему когда где куда откуда почему зачем
        сколько не нет да тоже также уже ещё очень всё все что-то говорил говорила сказал сказала скажи помнишь
        помните знаешь знает знаю зовут звали называется делает делать пожалуйста ли же бы вот ну расскажи
        рассказывал рассказывала мог могла могли хотел хотела напомни напомните напомнить подскажи подскажите""",
    "uk": """привіт дякую і й та або але якщо то що щоб як ніж так з зі із від до на в у о об про
        по при перед за над під між без для через є був була було були бути буде буду маю має може можу можеш
        треба хочу хоче я мене мені мною мій моя моє мої мого моєї моєму моїх ти тебе тобі твій твоя твоє він
        його йому вона її їй ми нас нам наш наша ви вас вам ваш вони їх їм себе собі свій цей ця це ці цього
        цієї той та те ті там тут сюди який яка яке які яку якому якого хто кого кому чого чому коли де куди
        звідки навіщо скільки не ні так теж також вже ще дуже все усе щось казав казала сказав сказала скажи
        пам'ятаєш знаєш знає знаю звати звали називається робить будь ласка чи же б ж нагадай нагадайте підкажи""",
    "bg": """здравей и или но ако че да как от до на в във с със за по при пред над под между без
        през към е съм си сме са беше бях бил била било бъде имам имаш има може мога трябва искам аз мен ме ми
        мой моя моят моята моето моите ти теб те твой той него го му тя нея я ни ние вие вас те тях им се този
        тази това тези онзи там тук какво каква какъв какви кой коя кое кои кога къде защо колко не да също вече
        още много всичко нещо казах каза помниш знаеш казва казвам""",
    "el": """γεια ευχαριστώ ο η το οι τα του της των τον την τους τις ένας μια μία ένα και ή αλλά
        αν ότι πως να θα ως από για με σε στο στη στην στον στα στις χωρίς μέχρι πριν μετά είναι είμαι είσαι
        ήταν ήμουν έχω έχεις έχει έχουμε είχα είχε μπορώ μπορεί πρέπει θέλω εγώ μου με εσύ σου σε αυτός αυτή
        αυτό αυτά εμείς μας εσείς σας τι ποιος ποια ποιο ποιες ποιον πότε πού που γιατί πώς πόσο πόσα δεν μην
        όχι ναι επίσης ήδη πολύ όλα κάτι είπα είπες πεις λέει λένε λέγεται θυμάσαι ξέρεις ξέρει μπορείς θυμίσεις
        θύμισέ""",
    "tr": """merhaba selam teşekkürler ve veya ya da de ama fakat eğer ki gibi kadar için ile mi
        mı mu mü bir bu şu o bunu şunu onu ben beni bana benim sen seni sana senin onun ona biz bize bizim siz
        size sizin onlar onların ne neyi nedir neydi hangi kim kimin kimi kimdi nerede nereye nereden neresi
        nasıl neden niçin niye kaç kaçta ne zaman zaman var vardı yok değil evet hayır çok daha en hep her şey
        şeyi bana söyle söyledim söylemiştim dedim demiştim hatırlıyor hatırla biliyor musun mısın misin idi
        olan olarak olduğu olduğunu olduğum adı ne acaba hatırlat hatırlatır söyler söyleyebilir""",
    "fi": """hei moi kiitos ja tai mutta jos että kun kuin niin ei en et emme ole olen olet on
        olemme ovat oli olin olivat ollut olla minä minun minua minulla minulle minut sinä sinun sinulla hän
        hänen me meidän te teidän he heidän se sen sitä siinä tämä tämän nämä tuo mikä mitä minkä missä mihin
        mistä milloin koska kuka kenen ketä miksi miten kuinka monta paljon kyllä myös jo vielä nyt hyvin kaikki
        jotain sanoin sanoi kerroin muistatko tiedätkö voiko voin pitää nimi mun mulla voisitko voitko kerro
        muistuta""",
    "hu": """szia köszönöm a az egy és vagy de ha hogy mint is nem igen van vagyok vagy vannak
        volt voltam lesz lenni én engem nekem az enyém te téged neked ő őt neki mi minket nekünk ti nektek ők ez
        ezt azt ebben abban itt ott mi mit mivel melyik milyen ki kit kinek mikor hol hová honnan miért hogyan
        hogy mennyi hány már még most nagyon minden valami mondtam mondta emlékszel tudod hívják hívnak kell
        lehet tudnád emlékeztess mondd""",
    "ar": """مرحبا السلام شكرا حالك و أو لكن إذا أن إن أنّ في من إلى على عن مع بعد قبل عند بين
        حتى كان كانت كنت يكون هو هي هم أنا أنت نحن هذا هذه ذلك تلك هناك هنا الذي التي ما ماذا من متى أين كيف
        لماذا كم أي أية هل لا لم لن ليس نعم أيضا قد لقد كل شيء جدا لي لك له لها لنا بي به بها عندي لدي قلت قال
        أخبرتك تذكر تتذكر تعرف اسم اسمه اسمها يا عليه عليها فيه منه التى الى علي ان انا انت او ممكن ذكرني أخبرني
        قل""",
    "fa": """سلام ممنون و یا اما ولی اگر که تا در به از با برای بر روی زیر بین بعد قبل هم است هست
        هستم بود بودم بودند شد شده می باشد دارم داری دارد داشتم داشت من تو او ما شما آنها این آن اینجا آنجا چه
        چی چیست کدام کی کجا کجاست چرا چگونه چطور چند چقدر نه نیست بله خیلی همه چیزی چیز گفتم گفت گفتی یادت یاد
        میدانی اسم نام را رو خود خودم ام ات اش ها های می خواهم کنم کرد کردم کند کن میتوانی میشه بگو بگی""",
    "ur": """اور یا لیکن اگر کہ تو میں سے کو کا کی کے پر تک ساتھ لیے ہے ہیں ہوں تھا تھی تھے ہو گا
        گی میرا میری میرے مجھے ہم آپ تم وہ یہ اس ان کیا کون کب کہاں کیوں کیسے کتنا کتنے نہیں ہاں بھی نے کر کہا""",
    "he": """שלום תודה ו או אבל אם כי ש של את אל על עם בלי לפני אחרי בין עד מ ב ל ה הוא היא הם הן
        אני אתה את אנחנו אתם זה זאת זו אלה שם כאן פה היה הייתה היו להיות יש אין לי לך לו לה לנו שלי שלך שלו שלה
        שלנו מה מי מתי איפה איך למה מדוע כמה איזה איזו לאן מאיפה לא כן גם כבר עוד מאוד הכל משהו אמרתי אמר אמרת
        סיפרתי זוכר זוכרת יודע יודעת קוראים נקרא נקראת האם בו בה אותו אותה לגבי שאני תזכיר תזכירי תוכל תוכלי""",
    "hi": """नमस्ते धन्यवाद और या लेकिन अगर कि तो में से को का की के पर तक साथ लिए है हैं हूँ हूं
        था थी थे हो होगा मैं मैंने मुझे मेरा मेरी मेरे हम हमारा तुम तुम्हारा आप आपका वह वे यह ये उस इस उन इन
        क्या कौन कब कहाँ कहां क्यों कैसे कितना कितने कितनी किस किसका नहीं हाँ भी ने कर बहुत सब कुछ कहा बताया
        बताओ याद पता कौन सा सी से वाला वाली जो ही सकते सकती दिलाओ दिलाना बताइए""",
    "bn": """এবং ও বা কিন্তু যদি যে তো এ এর এই সেই ওই তে কে র থেকে জন্য সঙ্গে সাথে আছে ছিল ছিলাম
        হয় হবে আমি আমার আমাকে আমরা আমাদের তুমি তোমার আপনি আপনার সে তার তাকে কি কী কে কখন কোথায় কেন কেমন কত কোন
        না হ্যাঁ খুব সব কিছু বলেছিলাম বলেছি মনে নাম""",
    "ta": """ஒரு மற்றும் அல்லது ஆனால் என்று என் எனது எனக்கு நான் நீ உன் நீங்கள் உங்கள் அவர் அவன்
        அவள் அது இது அந்த இந்த என்ன யார் எப்போது எங்கே ஏன் எப்படி எவ்வளவு எத்தனை இல்லை ஆம் உள்ளது இருக்கிறது
        இருந்தது""",
    "id": """halo terima kasih dan atau tetapi tapi jika kalau bahwa yang di ke dari pada dengan
        untuk oleh tentang dalam antara sampai adalah ada ini itu saya aku ku saya kamu anda kau dia ia mereka
        kami kita nya apa apakah siapa kapan mana dimana kenapa mengapa bagaimana berapa tidak bukan ya juga
        sudah telah akan sedang masih sangat semua sesuatu bilang katakan ingat tahu namanya nama disebut milik
        punya bisa harus mau sih dong tolong ingatkan bisakah""",
    "vi": """xin chào cảm ơn và hoặc nhưng nếu thì mà là của cho với từ đến tại ở trong ngoài
        trên dưới về bằng có không được bị đã sẽ đang tôi mình em anh chị bạn ông bà nó họ chúng ta này đó kia
        ấy đây gì nào ai khi đâu sao thế như bao giờ nhiêu mấy vì các những một cũng rất đều vẫn còn nữa rồi nói
        bảo nhớ biết tên gọi hả à ạ nhỉ vậy lúc cái con người chưa nhắc giúp""",
    "ko": """안녕하세요 안녕 감사합니다 그 이 저 것 수 나 나는 내 내가 제 제가 저는 나의 우리
        우리는 너 네 당신 그는 그녀 뭐 뭐야 뭐지 뭐였지 뭐라고 무엇 무엇인가요 무엇이었지 무슨 어떤 어느 누구
        누가 언제 언제야 언제지 언제였지 언제인가요 어디 어디야 어디지 어디에 어디서 어디였지 왜 어떻게 얼마
        얼마나 얼마야 몇 있어 있어요 있나요 있지 있었지 있습니까 없어 했어 했지 했나요 했어요 했더라 말했지
        말했어 말한 기억해 알아 알려줘 이름이 이름은 그리고 또는 하지만 만약 입니다 이야 인가요 였지 합니까
        하나요 해 해요 하는 하고 에서 에게 대해 대한 좀 다 더 잘 안 못 네 아니요 라고 되나요 되지 돼""",
    "sw": """na au lakini kama kwamba ya wa la za cha vya kwa katika ni si mimi wangu yangu langu
        changu wewe yako yeye yake sisi yetu wao hii hiyo huyu hapa nini nani lini wapi kwa nini vipi gani ngapi
        ndiyo hapana sana kila kitu jina""",
}
COMPOUNDING: Final = frozenset({"de", "nl", "sv", "da", "fi", "hu"})  # they write compounds as one word

# A question about a number shares the word with all that was said of other numbers: such words decide nothing alone.
FRAMES: Final = frozenset(
    fold(
        """name names number numbers time date day days week month year address place color
        colour price cost age code word today tomorrow yesterday monday tuesday wednesday thursday friday
        saturday sunday good new old big best favorite favourite people person long part morning evening night
        hour minute one two three nummer zeit uhr uhrzeit tag tage datum woche monat jahr adresse ort farbe
        preis kosten alter heute morgen gestern montag dienstag mittwoch donnerstag freitag samstag sonntag neue
        neuen neuer neues alte alten gut guten lieblings abend naam nummer tijd dag datum week maand jaar adres
        plaats kleur prijs namn nummer tid dag vecka månad år adress färg pris navn uge farve nom noms numéro
        heure jour date semaine mois année an adresse lieu couleur prix âge code aujourd hui demain hier préféré
        préférée nouveau nouvelle bon temps fois nombre nombres número hora día fecha semana mes año dirección
        lugar color precio edad código hoy mañana ayer favorito favorita nuevo nueva vez tiempo nome nomi numero
        ora giorno data settimana mese anno indirizzo posto luogo colore prezzo età codice oggi domani ieri
        preferito preferita nuovo nuova volta tempo dia mês ano endereço lugar cor preço idade hoje amanhã ontem
        novo nova imię nazwa numer godzina godzinie dzień dnia data tydzień miesiąc rok adres miejsce kolor cena
        wiek kod dziś jutro jméno číslo hodina hodin den datum týden měsíc rok adresa místo barva cena имя имени
        номер время день дня дата неделя месяц год адрес место цвет цена возраст код сегодня завтра вчера час
        часов ім'я час дата тиждень місяць рік адреса місце колір ціна isim ismi adı numara numarası saat gün
        tarih hafta ay yıl adres yer renk rengi fiyat yaş bugün yarın dün nimi numero aika päivä viikko kuukausi
        vuosi osoite paikka väri hinta رقم وقت الوقت يوم اليوم تاريخ أسبوع شهر سنة عنوان مكان لون سعر عمر الساعة
        غدا أمس شماره زمان روز تاریخ هفته ماه سال آدرس رنگ قیمت سن ساعت امروز فردا دیروز מספר שעה זמן יום תאריך
        שבוע חודש שנה כתובת מקום צבע מחיר גיל היום מחר אתמול नाम नंबर समय दिन तारीख हफ्ता महीना साल पता जगह रंग
        कीमत उम्र आज कल बजे nomor waktu hari tanggal minggu bulan tahun alamat tempat warna harga umur jam hari
        số ngày giờ tháng năm tuần tuổi màu giá chỗ live lives lived living work works worked job buy bought
        cost costs took take put stay wohnt wohne wohnen lebt arbeitet arbeite kostet kostete läuft liegt kommt
        komme steht woont werkt kost bor arbetar arbejder kostar koster habite habitent vit travaille coûte
        coûtait prix vive vivo trabaja trabajo cuesta costaba abita lavora costa costava mora moro trabalha
        custa mieszka mieszkam pracuje kosztuje bydlí pracuje stojí живет живу работает стоит лежит находится
        живе працює коштує yaşıyor çalışıyor oturuyor asuu maksaa locuiește lucrează costă lakik dolgozik μένει
        δουλεύει κοστίζει يسكن تسكن يعمل tinggal bekerja sống làm 이름 번호 시간 날짜 요일 주 달 년 주소 장소 색
        가격 나이 오늘 내일 어제 시 wrong problem problems issue issues trouble matter happened ended probleem gebeurd
        hände sket probleme passiert problème problèmes passé vient venait arrive arrivé problema problemas
        pasó pasaba viene venía successo veniva aconteceu vem vinha stało problém stalo проблема проблемы
        случилось случился случилась πρόβλημα sorun sorunu oldu olmuştu ongelma tapahtui probléma történt
        مشكلة حدث حصل مشکل مشکلی בעיה קרה समस्या हुआ हुई masalah terjadi 문제 문제가"""
    ).split()
)

# Of these, the ones that decide where nothing else was asked: what is my name?
DECISIVE: Final = frozenset(
    fold(
        """name naam namn navn nom nome nombre imię jméno имя isim ismi adım adresse address
        dirección indirizzo endereço adres adresse адрес alter age edad âge età idade 이름 주소 כתובת عنوان"""
    ).split()
)

# Chinese and Japanese: a pair of signs with one of these says little, and these pairs and runs of signs say nothing.
STOP_SIGNS: Final = frozenset("的了吗呢吧啊是我你您他她它们們这這那哪什么麼怎谁誰很也都就和在有不几幾嗎何")
WEAK_SIGNS: Final = frozenset("叫说說问問请請去来會会要想能给給到做对對过過把被住用从從")
_GRAMS: Final = """
        怎么样 什么时候 为什么 怎麼樣 什麼時候 為什麼 什么 怎么
        么样 为什 时候 多少 哪里 哪儿 哪个 几点 几个 没有 可以 不能 告诉 记得
        一下 一个 请问 是不 有没 之前 上次 我们 你们 你好 谢谢 名字 号码 时间 今天 明天 昨天 地方 为何 什麼 怎麼 麼樣
        時候 告訴 記得 一個 請問 還記 还记 叫什 知道 关于 關於 說過 说过 提到 何時 何处 名前 何で 何が 何を 何の
        番号 時間 今日 明日 昨日 場所"""
_RUNS: Final = """でしたか でしょうか ですか でした です ますか ました ます ません だっけ だった
        ましたか ください 教えて 覚えて いつ どこ だれ 誰 なに なん どう どれ どの どんな どちら いくら いくつ
        なぜ 何ですか 何時 何曜日 何という 何 私の 私は 私が 私 僕の 僕は 僕 という と言った と言って 言った
        言いました 話した について から まで って のは には では とは した する して いる いた いますか います
        ある あります あの この その これ それ ここ そこ こんにちは ありがとう いい อะไร ที่ไหน ไหน เมื่อไหร่
        เมื่อไร ใคร ทำไม อย่างไร ยังไง เท่าไหร่ เท่าไร กี่ ของฉัน ของผม ของเรา ของ ฉัน ดิฉัน กระผม ครับ ค่ะ คะ
        ไหม หรือเปล่า หรือ เป็น อยู่ ที่ชื่อ ที่ ชื่อ และ หรือ แต่ กับ ว่า คือ จะ ได้ ให้ แล้ว เคย บอก จำได้ไหม
        จำได้ พูดถึง สวัสดี ขอบคุณ ຫຍັງ ໃສ ເມື່ອໃດ ໃຜ ຂອງຂ້ອຍ ຂອງ ຂ້ອຍ ແມ່ນ ຢູ່ ທີ່ ຊື່ ແລະ ແນວໃດ ເທົ່າໃດ អ្វី
        ណា ពេលណា អ្នកណា ហេតុអ្វី យ៉ាងណា ប៉ុន្មាន របស់ខ្ញុំ របស់ ខ្ញុំ នៅ ជា ដែល ឈ្មោះ និង ឬ ទេ បាន មាន ឯណា ဘာ
        ဘယ် ဘယ်မှာ ဘယ်တော့ ဘယ်သူ ဘာကြောင့် ဘယ်လောက် ကျွန်တော့် ကျွန်တော် ကျွန်မ ရဲ့ သည် တယ် မှာ ကို လဲ လား နာမည်
        ပါ"""
STOP_GRAMS: Final = frozenset(_GRAMS.split())
STOP_RUNS: Final = tuple(sorted(map(fold, _RUNS.split()), key=len, reverse=True))


# At once: the first question must not wait for it.
_FOLDED = {language: frozenset(fold(words).split()) for language, words in _STOP_WORDS.items()}


def stop_words_of(words: frozenset[str]) -> tuple[frozenset[str], frozenset[str]]:
    """The stop words of the languages that have most of `words`, and which languages these are."""
    hits = {language: len(words & stops) for language, stops in _FOLDED.items()}
    most = max(hits.values())
    likely = frozenset(language for language, count in hits.items() if count == most and most)
    return frozenset().union(*(_FOLDED[language] for language in likely)), likely
